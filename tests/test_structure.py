"""The code stays readable: short functions and files, few `Any`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "fishnet"
FILES = sorted(SOURCE.rglob("*.py"))
TASKS = sorted(path.parent.name for path in (SOURCE / "tasks").glob("*/__init__.py"))
COMPOSED = {"multitask"}
"""Tasks that are made of others, and may import them."""
ROOMS = ("data", "tasks", "recipes")
"""Rooms with a folder per task."""
LONGEST_FUNCTION, LONGEST_FILE, MOST_ANY = 60, 500, 120


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(SOURCE)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long


def test_files_are_short() -> None:
    assert not [path for path in FILES if len(path.read_text("utf-8").splitlines()) > LONGEST_FILE]


def test_types_say_more_than_any() -> None:
    lines = [line for path in FILES for line in path.read_text("utf-8").splitlines() if re.search(r"\bAny\b", line)]
    assert len(lines) < MOST_ANY


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_nothing_is_left_for_later(word: str) -> None:
    assert not [path for path in FILES if word in path.read_text("utf-8")]


def imported(path: Path) -> list[str]:
    """Return the names of all modules of the library that a file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            package = ["fishnet", *path.relative_to(SOURCE).parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith("fishnet.")]


def owner(parts: tuple[str, ...] | list[str]) -> str | None:
    """Return the task whose folder a module below `fishnet` is in."""
    return parts[1] if len(parts) > 1 and parts[0] in ROOMS and parts[1] in TASKS else None


def trespasses(files: list[Path]) -> list[str]:
    """Return the imports of a task's folders from outside of them."""
    found = []
    for path in files:
        mine = owner(path.relative_to(SOURCE).parts)
        for name in imported(path):
            other = owner(name.split(".")[1:])
            if other is not None and other != mine and mine not in COMPOSED:
                found.append(f"{path.relative_to(SOURCE)} imports {name}")
    return found


def test_a_task_is_known_in_its_own_folders_only() -> None:
    assert len(TASKS) >= 2
    assert trespasses(FILES) == []


def test_a_trespass_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, line in {
        "commands/new.py": "from fishnet.tasks.detection import TASK",
        "tasks/classification/new.py": "def f():\n    import fishnet.data.detection.coco",
        "models/new.py": "from fishnet.data import detection",
        "drawing/new.py": "from ..data.detection import coco",
        "tasks/classification/relative.py": "from ..detection.task import DetectionTask",
        "tasks/detection/relative.py": "from .task import DetectionTask",
        "tasks/detection/fine.py": "from fishnet.data.detection.coco import CocoFile",
        "tasks/multitask/fine.py": "from fishnet.tasks.detection.task import DetectionTask",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(line)
    monkeypatch.setattr("tests.test_structure.SOURCE", tmp_path)
    monkeypatch.setattr("tests.test_structure.TASKS", [*TASKS, "multitask"])
    found = trespasses(sorted(tmp_path.rglob("*.py")))
    assert [line.split()[0] for line in found] == [
        "commands/new.py", "drawing/new.py", "models/new.py", "tasks/classification/new.py",
        "tasks/classification/relative.py",
    ]  # fmt: skip


def test_the_code_page_names_every_module() -> None:
    """A file of its own, or those of a folder by their names in its row."""
    page = (SOURCE.parents[1] / "docs" / "code.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    missing = []
    for path in FILES:
        place = path.relative_to(SOURCE)
        if place.name in ("__init__.py", "__main__.py", "version.py") or owner(place.parts):
            continue
        if not any(f"`{place.name}`" in row or f"`{place}`" in row for row in rows):
            missing.append(str(place))
    assert not missing
