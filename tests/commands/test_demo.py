"""What `demo` does with files that are already there; the demo itself runs in test_package.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from fishnet.commands.demo import demo
from fishnet.errors import UsageError


@pytest.mark.parametrize("name", ["data", "run", "predictions"])
def test_folders_that_are_not_from_a_demo_are_left_untouched(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("a year of work")
    with pytest.raises(UsageError, match=rf"contains {name}/, which is not from a demo; choose another folder"):
        demo(str(tmp_path), quick=True)
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine.txt"]
