"""Painters leave the caller's image alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fishnet.tasks.base import Painter
from fishnet.tasks.classification.painter import Sheets
from fishnet.tasks.detection.painter import Pictures
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
