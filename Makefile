# Two commands do all the set-up: `make demo` and `make test`. Both create .venv; needs Python >= 3.11, git and make.
# The first interpreter that runs and is new enough: a name on the PATH may be a shim without a version behind it.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-lowest lint docs format timm-conformance figures tables trunks pictures results performance clean

$(VENV)/.user: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

$(VENV)/.developer: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all,test,lint,docs]'
	touch $@

demo: $(VENV)/.user  ## train on the embedded data, with a report and pictures, in runs/demo
	$(BIN)/fishnet demo --out runs/demo

test: $(VENV)/.developer  ## the whole suite except what is marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-slow: $(VENV)/.developer  ## the tests of minutes
	$(BIN)/python -m pytest -m slow

test-lowest:  ## core tests on the lowest versions that pyproject declares
	$(PYTHON) tests/lowest.py

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.developer  ## the pages of docs/ and the reference from the docstrings, in build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(VENV)/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

timm-conformance: $(VENV)/.developer  ## timm's own model tests on every fish
	$(BIN)/python tests/timm_conformance.py

figures: $(VENV)/.user  ## the pictures of docs/, drawn from the models themselves
	$(BIN)/fishnet info fishnet99 --figure docs/figures/fishnet99.png
	$(BIN)/fishnet info fishnet150 --gradient-flow docs/figures/gradient_flow.png --compare fishnet150:zero_init_last=false,resnet50,resnet50:zero_init_last=false

tables: $(VENV)/.developer  ## docs/models.md and the golden numbers
	$(BIN)/python docs/make_models_table.py

trunks: $(VENV)/.developer  ## docs/trunks.md: which of timm's families can be trunks, some minutes
	$(BIN)/python docs/make_trunks_table.py

pictures: $(VENV)/.user  ## the pictures of README.md, from a demo
	$(BIN)/python docs/make_pictures.py

results: $(VENV)/.developer  ## docs/results.md from what the benchmarks recorded
	$(BIN)/python docs/make_results.py

performance: $(VENV)/.developer  ## docs/performance.md from what benchmarks/performance.py and shrunk.py measured
	$(BIN)/python docs/make_performance.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
