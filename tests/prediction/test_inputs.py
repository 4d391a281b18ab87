"""Inputs of predict that cannot be read are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fishnet.errors import FishnetError
from fishnet.prediction.inputs import describe_skipped, find_inputs
from tests.data.makers import noise, put


def test_formats_without_a_decoder_and_broken_links_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", noise(1))
    put(tmp_path / "IMG_1.HEIC", b"x")
    put(tmp_path / ".hidden.heic", b"x")
    put(tmp_path / "notes.txt", b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_inputs([str(tmp_path)])
    assert found.files == [tmp_path / "a.jpg"]
    text = describe_skipped(found.skipped)
    assert text.startswith(f"skipped 2 files: {tmp_path / 'IMG_1.HEIC'}, {tmp_path / 'gone.png'} (broken link)")
    assert "convert formats such as HEIC" in text
    assert find_inputs([str(tmp_path / "*.jpg")]).skipped == []
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FishnetError, match=r"contains no images .*skipped 2 files: .*HEIC"):
        find_inputs([str(tmp_path)])
