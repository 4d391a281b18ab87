"""Wording of messages."""

from __future__ import annotations

import pytest

from fishnet.errors import counted


@pytest.mark.parametrize(
    ("count", "things", "text"),
    [(1, "errors", "1 error"), (2, "errors", "2 errors"), (1, "classes", "1 class"), (0, "classes", "0 classes")],
)
def test_one_thing_is_singular(count: int, things: str, text: str) -> None:
    assert counted(count, things) == text
