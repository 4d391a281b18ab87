"""Masks and keypoints of regions, in pixels of the image."""

from __future__ import annotations

import math

import numpy as np

THRESHOLD = 0.5
"""Probability threshold for the pixels of a mask."""


def linear(size: int, wanted: int) -> np.ndarray:
    """Return the matrix (wanted, size) of a bilinear interpolation with half-pixel centers along one side."""
    places = np.maximum((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(size / wanted) - 0.5, 0)
    low = np.minimum(places.astype(np.int64), size - 1)
    share = (places - low).astype(np.float32)
    matrix = np.zeros((wanted, size), np.float32)
    rows = np.arange(wanted)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return matrix


def cubic(size: int, wanted: int, a: float = -0.75) -> np.ndarray:
    """Return the matrix (wanted, size) of a bicubic interpolation with half-pixel centers along one side.

    Args:
        size: Length of the side.
        wanted: Its length after the interpolation.
        a: Coefficient of the kernel; -0.75 in PyTorch.
    """
    places = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    low = np.floor(places).astype(np.int64)
    matrix = np.zeros((wanted, size))
    for offset in range(-1, 3):
        distance = np.abs(places - low - offset)
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(wanted), np.clip(low + offset, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def pasted(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask of an object in the image, bool (height, width).

    Args:
        mask: Probabilities inside the box, float32 (28, 28).
        box: x1 y1 x2 y2 in pixels of the image.
        height: Height of the image.
        width: Width of the image.
    """
    side = len(mask)
    scale = np.float32((side + 2) / side)  # padded by zeros, so that values decrease at the edges of the mask as well
    mask = np.pad(mask, 1)
    half = (box[2:] - box[:2]) * np.float32(0.5) * scale
    center = (box[2:] + box[:2]) * np.float32(0.5)
    left, top = (int(value) for value in center - half)
    right, bottom = (int(value) for value in center + half)
    rows = linear(side + 2, max(1, bottom - top + 1))
    columns = linear(side + 2, max(1, right - left + 1))
    y1, y2 = max(top, 0), min(bottom + 1, height)
    x1, x2 = max(left, 0), min(right + 1, width)
    found = np.zeros((height, width), bool)
    if y2 > y1 and x2 > x1:
        part = rows[y1 - top : y2 - top] @ mask @ columns[x1 - left : x2 - left].T
        found[y1:y2, x1:x2] = part > THRESHOLD
    return found


def keypoints(maps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keypoints (N, K, 3): x, y, visibility (always 1), and their scores (N, K).

    Args:
        maps: Heat maps of each region, float32 (N, K, S, S).
        boxes: Regions (N, 4): x1 y1 x2 y2 in pixels.
    """
    count, points, side, _ = maps.shape
    found, scores = np.ones((count, points, 3), np.float32), np.zeros((count, points), np.float32)
    for index, (heat, box) in enumerate(zip(maps, boxes, strict=True)):
        width, height = (max(float(value), 1.0) for value in box[2:] - box[:2])
        rows, columns = cubic(side, math.ceil(height)), cubic(side, math.ceil(width))
        fine = rows @ heat @ columns.T
        place = fine.reshape(points, -1).argmax(1)
        y, x = np.divmod(place, len(columns))
        found[index, :, 0] = (x + 0.5) * (width / len(columns)) + box[0]
        found[index, :, 1] = (y + 0.5) * (height / len(rows)) + box[1]
        scores[index] = fine.reshape(points, -1)[np.arange(points), place]
    return found, scores


def run_lengths(mask: np.ndarray) -> str:
    """Return the compressed run lengths of a mask (H, W), bool, as in COCO files."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    text = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:  # five bits at a time, the lowest first; the sixth bit says whether others follow
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + 32 * more + 48))
    return "".join(text)
