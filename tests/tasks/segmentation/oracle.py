"""Definitions of the metrics of segmentation, written for clarity: one loop per class, masks of booleans."""

from __future__ import annotations

import math

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""Prediction and truth."""


def confusion(pairs: list[Pair], classes: int, ignore: int) -> list[list[int]]:
    return [
        [sum(int(((truth == row) & (found == column)).sum()) for found, truth in pairs) for column in range(classes)]
        for row in range(classes)
    ]


def masks(found: np.ndarray, truth: np.ndarray, index: int, ignore: int) -> Pair:
    return (found == index) & (truth != ignore), truth == index


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Return a mask without the pixels that have a neighbor outside, a number of times."""
    for _ in range(times):
        ring = np.pad(mask, 1, constant_values=False)
        height, width = mask.shape
        mask = np.all([ring[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask


def iou(pairs: list[Pair], index: int, ignore: int, near_contours: bool = False) -> float | None:
    inter = union = 0
    for found, truth in pairs:
        one, other = masks(found, truth, index, ignore)
        if near_contours:
            height, width = truth.shape
            times = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
            one, other = one & ~eroded(one, times), other & ~eroded(other, times)
        inter += int((one & other).sum())
        union += int((one | other).sum())
    return inter / union if union else None


def recall(pairs: list[Pair], index: int) -> float | None:
    hits = sum(int(((truth == index) & (found == index)).sum()) for found, truth in pairs)
    pixels = sum(int((truth == index).sum()) for _, truth in pairs)
    return hits / pixels if pixels else None


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else -1.0
