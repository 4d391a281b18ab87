"""Pixels per class, and class weights, against their definitions in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.data.segmentation.weights import count_pixels, enet, median_frequency
from fishnet.errors import FishnetError
from tests.data.makers import put
from tests.data.segmentation.makers import data_folder, png


@pytest.mark.parametrize(("name", "ignored"), [("camvid", 11), ("coco_semantic", 255)])
def test_weights_of_real_data(name: str, ignored: int, unpack: Callable[..., Path]) -> None:
    root = unpack("coco" if name == "coco_semantic" else name).with_name(name)
    dataset = open_segmentation(root, "train")
    classes = len(dataset.classes)
    counts = count_pixels(dataset, progress=False)
    maps = [np.array(Image.open(path)) for path in sorted((root / "train" / "labels").iterdir())]
    pixels = np.array([sum(int((labels == k).sum()) for labels in maps) for k in range(classes)])
    assert counts.pixels.tolist() == pixels.tolist()
    assert counts.images.tolist() == [sum(bool((labels == k).any()) for labels in maps) for k in range(classes)]
    assert counts.ignored == sum(int((labels == ignored).sum()) for labels in maps)
    wanted, frequencies = np.zeros(classes), {}
    for k in np.flatnonzero(pixels):
        with_k = [labels for labels in maps if (labels == k).any()]
        frequencies[k] = pixels[k] / sum(int((labels != ignored).sum()) for labels in with_k)
    for k, frequency in frequencies.items():
        wanted[k] = np.median(list(frequencies.values())) / frequency
    assert np.allclose(median_frequency(counts), wanted, rtol=1e-12, atol=0)
    assert np.allclose(enet(counts), 1 / np.log(1.02 + pixels / pixels.sum()), rtol=1e-12, atol=0)
    assert enet(counts).max() <= 1 / np.log(1.02)


def test_a_median_of_known_frequencies(tmp_path: Path) -> None:
    """Class 0: 6 of 8, class 1: 2 of 8 pixels, class 2 never; the median of 0.75 and 0.25 is 0.5."""
    root = data_folder(tmp_path, {"train": 1})
    put(root / "train" / "labels" / "000.png", png(np.array([[0, 0, 0, 0, 0, 0, 1, 1, 255]], np.uint8)))
    counts = count_pixels(open_segmentation(root, "train"), progress=False)
    assert median_frequency(counts).tolist() == [0.5 / 0.75, 0.5 / 0.25, 0.0]
    assert counts.ignored == 1


def test_label_maps_that_cannot_be_counted(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"train": 3})
    (root / "train" / "labels" / "001.png").write_bytes(b"no image")
    with pytest.raises(FishnetError, match=r"001\.png: it is not an image"):
        count_pixels(open_segmentation(root, "train"), progress=False)
    assert count_pixels(open_segmentation(root, "train", bad_images="skip"), progress=False).skipped == 1
    for path in (root / "train" / "labels").iterdir():
        path.write_bytes(png(np.full((36, 40), 255, np.uint8)))
    with pytest.raises(FishnetError, match="has a labeled pixel: all are ignored"):
        count_pixels(open_segmentation(root, "train"), progress=False)
