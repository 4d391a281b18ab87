"""Label files and overlays of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.drawing.label_maps import class_colors
from fishnet.tasks.base import Painter
from fishnet.tasks.segmentation.painter import LabelMaps, class_indices
from tests.data.makers import noise


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_every_image_has_a_label_file_and_an_overlay(tmp_path: Path) -> None:
    painter: Painter = LabelMaps(tmp_path, ["sky", "road"])
    image = noise(0, 320, 240)
    before = np.array(image)
    label_map = torch.zeros(240, 320, dtype=torch.uint8)
    label_map[100:] = 1
    for file in ("a/photo.jpg", "b/Photo.jpg", "c/photo_2.jpg"):
        painter.add({"file": file, "thumbnail": painter.thumbnail(image)}, {"label_map": label_map})
    painter.add({"file": "late.jpg", "thumbnail": None}, {"label_map": label_map})
    painter.finish()
    labels = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(painter.patterns[1]))
    assert labels == ["labels/Photo_2.png", "labels/late.png", "labels/photo.png", "labels/photo_2_2.png"]
    assert len(list(tmp_path.glob(painter.patterns[0]))) == painter.drawn == 3
    assert sorted(painter.written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert np.array_equal(read(tmp_path / "labels" / "late.png"), label_map.numpy())
    picture = read(tmp_path / "pictures" / "photo.jpg").astype(float)
    assert picture.shape[0] > 240  # the legend
    assert picture.shape[1] == 320
    colors = class_colors(2).astype(float)
    for rows, color, other in ((slice(10, 90), *colors), (slice(110, 230), *colors[::-1])):
        mean = picture[rows].mean((0, 1))
        assert np.abs(mean - color).sum() < np.abs(mean - other).sum()
    assert np.array_equal(np.array(image), before)


def test_label_files_have_the_encoding_of_the_training_data(tmp_path: Path) -> None:
    palette = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
    label_map = np.array([[0, 1], [1, 0]])
    encodings = {
        "values": (lambda labels: Image.fromarray(np.array([0, 255], np.uint8)[labels]), [[0, 255], [255, 0]]),
        "colors": (lambda labels: Image.fromarray(palette[labels]), palette[label_map].tolist()),
        "indices": (class_indices, label_map.tolist()),
    }
    for name, (encode, expected) in encodings.items():
        painter = LabelMaps(tmp_path / name, ["a", "b"], palette.tolist(), encode)
        painter.add({"file": "x.jpg", "thumbnail": Image.new("RGB", (300, 300))}, {"label_map": label_map})
        assert read(tmp_path / name / "labels" / "x.png").tolist() == expected
        # half of the palette's color on black
        picture = read(tmp_path / name / "pictures" / "x.jpg").astype(int)
        assert picture[75, 225].tolist() == pytest.approx([110, 55, 0], abs=6)


def test_many_classes_and_large_photos(tmp_path: Path) -> None:
    painter = LabelMaps(tmp_path, [f"class {index}" for index in range(300)])
    small = painter.thumbnail(Image.new("RGB", (4000, 3000)))
    assert max(small.size) == 1600
    label_map = torch.full((3000, 4000), 299)
    painter.add({"file": "x.jpg", "thumbnail": small}, {"label_map": label_map})
    assert (read(tmp_path / "labels" / "x.png") == 299).all()
    assert read(tmp_path / "pictures" / "x.jpg").shape[1] == 1600
    assert painter.wants(499)
    assert not painter.wants(500)
