"""The code stays readable: short functions and files, few `Any`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "fishnet"
FILES = sorted(SOURCE.rglob("*.py"))
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
