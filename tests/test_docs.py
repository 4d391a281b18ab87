"""The docs fit the code: commands parse, links lead somewhere, and the reference has every public name."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import fishnet
from fishnet.cli import COMMANDS, find_command, parse
from fishnet.errors import UsageError

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").rglob("*.md"))]
REFERENCE = sorted((PROJECT / "docs" / "api").glob("*.md"))
DIRECTIVES = [name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M)]
FIRST_STEPS = PROJECT / "docs" / "first-steps.md"


def code(page: Path) -> list[str]:
    """Return the blocks of code without a language other than that of the shell."""
    return re.findall(r"^```(?:shell)?\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Return the commands in the blocks of a page; a synopsis with brackets is none."""
    lines = [line for block in code(page) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("fishnet ") and not re.search(r"[\[|]", line)]


def test_every_command_in_the_docs_parses() -> None:
    found = [(page.name, line) for page in PAGES for line in commands(page)]
    assert len(found) > 20
    for page, line in found:
        name, rest = find_command(shlex.split(line, comments=True)[1:])
        if name == "train" and rest[0] == "--resume":  # the rest comes from the run
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                parse(name, COMMANDS[name], COMMANDS[name].load(), rest)
        except UsageError as error:
            pytest.fail(f"{page}: {line}: {error}")


def test_the_quickstart_is_the_way_that_the_tests_type() -> None:
    """README and docs/index.md show the commands of docs/first-steps.md."""
    way = [shlex.split(line, comments=True) for line in commands(FIRST_STEPS)[:5]]
    for page in (README, PROJECT / "docs" / "index.md"):
        shown = [shlex.split(line, comments=True) for line in commands(page)]
        assert shown[:5] == way, page


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def test_links_between_the_pages_lead_somewhere() -> None:
    assert sum(len(links(page)) for page in PAGES) > 20
    for page in PAGES:
        for link in links(page):
            path = link.partition("#")[0]
            assert not path or (page.parent / path).exists(), f"{page.name}: {link}"


def test_every_public_name_has_an_entry_of_its_own() -> None:
    assert {f"fishnet.{name}" for name in fishnet.__all__} <= set(DIRECTIVES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built pages; a warning would have stopped the build."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def public_names(module: str) -> set[str]:
    """Return the names of the classes and functions that a module defines and does not hide."""
    found = vars(importlib.import_module(module)).items()
    return {
        f"{module}.{name}"
        for name, value in found
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module
    }


def test_the_reference_has_every_public_name_of_its_modules(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    built = {line.split(" ", 1)[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {f"fishnet.{name}" for name in fishnet.__all__} <= built
    modules = [name for name in DIRECTIVES if name.removeprefix("fishnet.") not in fishnet.__all__]
    assert len(modules) > 20
    assert sum(len(public_names(module)) for module in modules) > 100
    assert not {name for module in modules for name in public_names(module)} - built


def test_a_page_says_what_a_docstring_says(site: Path) -> None:
    page = (site / "api" / "fishnet.html").read_text("utf-8")
    assert "Replace the run in --out." in page
    assert "googleapis" not in page  # the pages load nothing from elsewhere


def test_the_tests_that_benchmarks_run_exist() -> None:
    named = {
        name
        for path in (PROJECT / "benchmarks").glob("*.py")
        for name in re.findall(r'"(tests/\S+?\.py)"', path.read_text())
    }
    assert named
    assert not [name for name in named if not (PROJECT / name).is_file()]
