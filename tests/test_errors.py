"""Wording of messages."""

from __future__ import annotations

import pytest

from fishnet.errors import counted


@pytest.mark.parametrize(
    ("count", "thing", "text"),
    [
        (1, "error", "1 error"), (2, "error", "2 errors"), (1, "class", "1 class"), (0, "class", "0 classes"),
        (2, "box", "2 boxes"), (3, "copy", "3 copies"), (2000, "image", "2,000 images"),
    ],
)  # fmt: skip
def test_one_thing_is_singular(count: int, thing: str, text: str) -> None:
    assert counted(count, thing) == text
