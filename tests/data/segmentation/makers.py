"""Small segmentation data sets made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.makers import encode, noise, put

CLASSES = {"classes": ["sky", "road", "car"], "ignore_index": 255}


def label_map(seed: int, width: int = 40, height: int = 36, classes: int = 3, ignored: bool = True) -> np.ndarray:
    """Return stripes of all classes in an order that depends on the seed, with some ignored pixels."""
    order = np.random.default_rng(seed).permutation(classes)
    labels = np.repeat(order[np.arange(width) * classes // width][None], height, 0).astype(np.uint8)
    if ignored:
        labels[:2, :5] = 255
    return labels


def png(labels: np.ndarray) -> bytes:
    return encode(Image.fromarray(labels), "PNG")


def data_folder(root: Path, counts: Mapping[str, int], document: object = None, start: int = 0) -> Path:
    """Write root/<split>/images/<n>.jpg and root/<split>/labels/<n>.png; split "" has no folder."""
    seed = start
    for split, count in counts.items():
        for number in range(count):
            put(root / split / "images" / f"{number:03d}.jpg", noise(seed))
            put(root / split / "labels" / f"{number:03d}.png", png(label_map(seed)))
            seed += 1
    (root / "classes.json").write_text(json.dumps(CLASSES if document is None else document))
    return root


def relabel(root: Path, change, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Replace every label file by `change(labels)`, an image or its bytes."""
    for split in splits:
        for path in sorted((root / split / "labels").iterdir()):
            with Image.open(path) as image:
                changed = change(np.array(image))
            path.write_bytes(changed if isinstance(changed, bytes) else encode(changed, "PNG"))


def paletted(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([(37 * n) % 256 for n in range(768)])
    assert image.mode == "P"
    return image
