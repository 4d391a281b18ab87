"""Run the core tests on the lowest versions that pyproject.toml declares, in an environment of their own.

`make test-lowest`; the environment, .venv-lowest, is kept for the next time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / ".venv-lowest"
CORE = [
    "tests/data",
    "tests/tasks",
    "tests/models/test_fishnet.py",
    "tests/models/checkpoints/test_weights.py",
    "tests/test_cli.py",
]
CORE += [
    "tests/test_settings.py",
    "tests/test_cards.py",
    "tests/training/test_module.py",
    "tests/models/test_parity.py",
]
TOOLS = ["pytest>=8.4", "pytest-timeout", "pytest-xdist", "pytorchcv==0.0.74", "scikit-learn>=1.6", "scipy>=1.14"]


def lowest(requirement: str) -> str:
    """Return a requirement with its lower bound as the only version: `torch>=2.10` becomes `torch==2.10.*`."""
    match = re.match(r"^([\w.-]+(?:\[[\w,]+\])?)\s*>=\s*([\w.]+)", requirement)
    if match is None:
        raise SystemExit(f"{requirement!r} in pyproject.toml declares no lowest version")
    name, version = match.groups()
    return f"{name}=={version}" if version.count(".") >= 2 else f"{name}=={version}.*"


def main() -> None:
    """Install the lowest versions, then run the core tests."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = [lowest(requirement) for requirement in project["dependencies"]]
    print("lowest versions:", ", ".join(pins), flush=True)
    if not FOLDER.exists():
        venv.create(FOLDER, with_pip=True)
    python = FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *pins, *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(PROJECT)], check=True)
    raise SystemExit(subprocess.run([python, "-m", "pytest", "-m", "not slow", *CORE], cwd=PROJECT).returncode)


if __name__ == "__main__":
    main()
