"""Boxes in NumPy: anchors, box deltas, non-maximum suppression. Boxes are x1 y1 x2 y2 in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LARGEST_SCALE = math.log(1000 / 16)
"""Maximum of the predicted logarithm of a box's scale, as in torchvision."""


def anchors_at(index: np.ndarray, cells: np.ndarray, width: int, stride: int) -> np.ndarray:
    """Return anchors (N, 4) by their index on a map, in the order (row, column, anchor of the cell).

    Args:
        index: int (N,).
        cells: Anchors (A, 4) around the upper left pixel of the map.
        width: Width of the map.
        stride: Pixels of the image per pixel of the map.
    """
    place, cell = np.divmod(index, len(cells))
    row, column = np.divmod(place, width)
    shift = np.stack([column, row, column, row], 1).astype(np.float32) * np.float32(stride)
    return shift + cells[cell]


def moved(deltas: np.ndarray, boxes: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Return boxes moved by deltas (x, y, log width, log height), as R-CNN defines them.

    Args:
        deltas: float32 (N, 4) or (N, classes, 4).
        boxes: float32 (N, 4).
        weights: Divisors of the four deltas.
    """
    if deltas.ndim == 3:
        boxes = boxes[:, None]
    sides = boxes[..., 2:] - boxes[..., :2]
    centers = boxes[..., :2] + np.float32(0.5) * sides
    deltas = deltas / np.array(weights, np.float32)
    scales = np.minimum(deltas[..., 2:], np.float32(LARGEST_SCALE))
    centers = deltas[..., :2] * sides + centers
    halves = np.float32(0.5) * (np.exp(scales) * sides)
    return np.concatenate([centers - halves, centers + halves], -1)


def from_distances(distances: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return boxes from distances of the edges (left, top, right, bottom) to the centers of squares, in units of their
    sides.

    Args:
        distances: float32 (N, 4).
        squares: float32 (N, 4).
    """
    centers = np.float32(0.5) * (squares[:, :2] + squares[:, 2:])
    lengths = distances * np.tile(squares[:, 2:] - squares[:, :2], 2)
    return np.concatenate([centers - lengths[:, :2], centers + lengths[:, 2:]], 1)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return boxes (..., 4) clipped to an image."""
    limits = np.array([width, height, width, height], np.float32)
    return np.minimum(np.maximum(boxes, np.float32(0)), limits)


def large(boxes: np.ndarray, least: float) -> np.ndarray:
    """Return which boxes have both sides of at least a length, bool (N,)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides >= np.float32(least)).all(1)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` highest scores (N,) in descending order; ties by index."""
    if count < len(scores):
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        above, equal = np.flatnonzero(scores > limit), np.flatnonzero(scores == limit)
        chosen = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def suppressed(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou: float) -> np.ndarray:
    """Return the indices of the boxes that non-maximum suppression within each group keeps, by descending score.

    Args:
        boxes: float32 (N, 4).
        scores: float32 (N,).
        groups: int (N,), such as classes; boxes of different groups do not suppress each other.
        iou: A box is removed if its IoU with a box of a higher score is above this value.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.zeros(len(boxes), bool)
    for group in np.unique(groups):
        own = order[groups[order] == group]
        kept[own[_greedy(boxes[own], iou)]] = True
    return order[kept[order]]


def _greedy(boxes: np.ndarray, iou: float) -> list[int]:
    """Return the indices of the boxes that are kept; `boxes` are sorted by descending score."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rest = np.arange(len(boxes))
    kept: list[int] = []
    while len(rest):
        first, rest = rest[0], rest[1:]
        kept.append(int(first))
        others = boxes[rest]
        corner = np.maximum(boxes[first, :2], others[:, :2])
        sides = np.maximum(np.minimum(boxes[first, 2:], others[:, 2:]) - corner, np.float32(0))
        shared = sides[:, 0] * sides[:, 1]
        with np.errstate(invalid="ignore"):  # two boxes without any area: 0 / 0, which is above no threshold
            rest = rest[~(shared / (areas[first] + areas[rest] - shared) > np.float32(iou))]
    return kept
