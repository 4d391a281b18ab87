"""A small multitask folder whose images have any subset of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import from_numpy

from fishnet.data import run_lengths
from fishnet.data.levels import ImageLabels, LayoutWriter, LevelClasses, ObjectLabels
from tests.data.makers import noise

CLASSES = LevelClasses(["day", "night"], ["car", "dog", "tree"], ["ground", "sky"])
SIZE = 40, 36


def labels_of(number: int, known: str) -> ImageLabels:
    """Return labels that are a function of a number; `known` has a letter for each level: i, r, p."""
    generator = np.random.default_rng(number)
    masks = np.zeros((number % 3, 36, 40), bool)
    for place, mask in enumerate(masks):
        mask[5 * place : 5 * place + 9, 3 + number % 7 : 20 + place] = True
    runs = run_lengths.encode(from_numpy(masks)) if len(masks) else []
    boxes = run_lengths.bounding_boxes(runs) if runs else np.zeros((0, 4))
    objects = ObjectLabels((number + np.arange(len(masks))) % 3, boxes, np.zeros(len(masks), bool), runs)
    label_map = generator.choice(np.array([0, 1, 255], np.uint8), (36, 40))
    return ImageLabels(
        number % 2 if "i" in known else None, objects if "r" in known else None, label_map if "p" in known else None
    )


def multitask(
    root: Path, known: tuple[str, ...], splits: tuple[str, ...] = ("train", "val"), classes: LevelClasses = CLASSES
) -> Path:
    """Write a folder with an image for each entry of `known`, in every split."""
    writer = LayoutWriter(root, classes)
    for start, split in enumerate(splits):
        for number, text in enumerate(known, 100 * start):
            writer.add(split, f"{number:03d}.jpg", noise(number, *SIZE), SIZE, labels_of(number, text))
    writer.finish()
    return root
