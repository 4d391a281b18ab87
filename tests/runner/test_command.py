"""Lines that the runner prints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.data.segmentation.coding import LabelError
from fishnet.data.segmentation.dataset import read_raw_labels
from fishnet.runner import command, model
from fishnet.runner.errors import RunnerError
from fishnet.runner.images import read_rgb
from fishnet.runner.model import Model
from fishnet.runner.names import UniqueStems


@pytest.mark.parametrize(
    ("name", "encoding", "text"),
    [("Schäfer", "utf-8", "Schäfer"), ("Schäfer", "ascii", "Sch\\u00e4fer"), ("a\udc80", "utf-8", "a\\udc80")],
)
def test_names_are_readable_where_the_terminal_can_show_them(
    name: str, encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    command._print({"label": name})
    line = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert text in line
    assert json.loads(line) == {"label": name}


def test_label_maps_of_images_of_one_name_are_written_apart(tmp_path: Path) -> None:
    names = UniqueStems()
    for folder, value in (("a", 1), ("b", 2)):
        entry = command._plain({"label_map": np.full((2, 3), value)}, f"{folder}/photo.jpg", str(tmp_path), names)
        with Image.open(str(entry["label_map"])) as image:
            assert image.getpixel((0, 0)) == value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "photo_2.png"]
    with Image.open(tmp_path / "photo.png") as image:
        assert image.getpixel((0, 0)) == 1


def test_thresholds_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "read_description", lambda folder: {"thresholds": {"top": 5}})
    monkeypatch.setattr(model, "open_engine", lambda folder, fallback: None)
    assert Model("exported", thresholds={"top": 2, "score": None}).thresholds.top == 2
    with pytest.raises(RunnerError, match="--top must be at least 1, not 0"):
        Model("exported", thresholds={"top": 0})
    with pytest.raises(RunnerError, match="unknown threshold 'iou'; thresholds are top, threshold, score"):
        Model("exported", thresholds={"iou": 0.5})
    with pytest.raises(RunnerError, match=r"--score must be between 0 and 1, not 1\.5"):
        Model("exported", thresholds={"score": 1.5})


@pytest.mark.parametrize("read", [read_rgb, read_raw_labels])
def test_files_that_cannot_be_read_are_not_called_empty(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((RunnerError, LabelError), match=r"the file cannot be read \(Not a directory\)"):
        read(tmp_path / "file" / "photo.png")
    with pytest.raises((RunnerError, LabelError), match="the file is empty"):
        read(tmp_path / "file")
