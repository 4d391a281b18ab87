"""Painters leave the caller's image alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fishnet.data.levels import LevelClasses
from fishnet.tasks.base import Painter
from fishnet.tasks.classification.painter import Sheets
from fishnet.tasks.detection.painter import Pictures
from fishnet.tasks.multitask.painter import LevelPictures
from fishnet.tasks.segmentation.painter import LabelMaps
from tests.data.makers import noise


@pytest.mark.parametrize("kind", ["classification", "detection"])
def test_the_image_is_not_changed(tmp_path: Path, kind: str) -> None:
    painter: Painter = Sheets(tmp_path, 1) if kind == "classification" else Pictures(tmp_path, ["cat"])
    image = noise(0, 800, 600)
    before = np.array(image)
    answer = {"labels": ["cat"], "indices": [0], "scores": [0.9], "boxes": [[10.0, 10.0, 200.0, 300.0]]}
    painter.add({"file": "a.jpg", "thumbnail": painter.thumbnail(image)}, answer)
    painter.finish()
    assert painter.written
    assert image.size == (800, 600)
    assert np.array_equal(np.array(image), before)


@pytest.mark.parametrize("kind", ["classification", "detection", "segmentation", "multitask"])
@pytest.mark.parametrize("size", [(200, 120), (31, 17)], ids=str)
def test_a_frame_keeps_its_size_and_shows_the_answer(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    width, height = size
    label_map = np.zeros((height, width), np.int64)
    label_map[height // 2 :] = 1
    image_answer = {"labels": ["cat"], "indices": [0], "scores": [0.9]}
    objects = {**image_answer, "boxes": [[2.0, 2.0, 0.5 * width, 0.8 * height]]}
    pixels = {"label_map": label_map, "labels": ["background", "grass"], "indices": [0, 1], "shares": [0.5, 0.5]}
    painter: Painter
    answer, painter = {
        "classification": (image_answer, Sheets(tmp_path, 1)),
        "detection": (objects, Pictures(tmp_path, ["cat"])),
        "segmentation": (pixels, LabelMaps(tmp_path, ["background", "grass"])),
        "multitask": (
            {"image": image_answer, "region": objects, "pixel": pixels},
            LevelPictures(tmp_path, LevelClasses(["cat"], ["cat"], ["background", "grass"]), None, None),
        ),
    }[kind]
    image = noise(0, width, height)
    before = np.array(image)
    frame = painter.frame(image, answer)
    assert (frame.size, frame.mode) == (size, "RGB")
    assert np.array_equal(np.array(image), before)
    changed = (np.asarray(frame) != before).any(-1)
    assert changed[: height // 2].any()
    if kind in ("segmentation", "multitask"):
        assert changed[-1, -5:].all()  # painted as grass
    else:
        assert not changed[-1, -5:].any()
    assert list(tmp_path.iterdir()) == []
