"""RoIAlign (arXiv 1703.06870) in NumPy.

A bin is a weighted mean of pixels whose weights are products of one along the rows and one along the columns, so a
region is pooled by two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pooling:
    """RoIAlign from the levels of a pyramid; the size of a region determines its level (arXiv 1612.03144)."""

    levels: Sequence[str]
    """Names of the maps, the finest first."""
    strides: Sequence[int]
    """Pixels of the image per pixel of each map."""
    size: int
    """Height and width of the pooled maps."""
    samples: int
    """Sampling points per bin in each direction."""
    canonical_size: float = 224
    """Side in pixels of regions of the canonical level."""
    canonical_level: int = 4
    """Binary logarithm of the stride of the canonical level."""

    def __call__(self, maps: Sequence[np.ndarray], boxes: np.ndarray) -> np.ndarray:
        """Return the pooled maps of the regions of one image, float32 (R, size, size, C).

        Args:
            maps: Maps of the levels, float32 (H, W, C) each.
            boxes: Regions (R, 4): x1 y1 x2 y2 in pixels.
        """
        pooled = np.empty((len(boxes), self.size, self.size, maps[0].shape[-1]), np.float32)
        levels = self._level_of(boxes)
        for level, (values, stride) in enumerate(zip(maps, self.strides, strict=True)):
            places = np.flatnonzero(levels == level)
            if len(places):
                self._pool(values, boxes[places] * np.float32(1 / stride), pooled, places)
        return pooled

    def _level_of(self, boxes: np.ndarray) -> np.ndarray:
        first, last = (int(np.log2(stride)) for stride in (self.strides[0], self.strides[-1]))
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        with np.errstate(divide="ignore"):  # a region without any area is on the finest level
            found = np.floor(self.canonical_level + np.log2(sides / np.float32(self.canonical_size)) + np.float32(1e-6))
        return np.clip(found, first, last).astype(np.int64) - first

    def _pool(self, values: np.ndarray, boxes: np.ndarray, pooled: np.ndarray, places: np.ndarray) -> None:
        """Pool regions in pixels of a map into rows of `pooled`."""
        height, width, channels = values.shape
        rows, row_weights = _along(boxes[:, 1], boxes[:, 3], height, self.size, self.samples)
        columns, column_weights = _along(boxes[:, 0], boxes[:, 2], width, self.size, self.samples)
        for index, place in enumerate(places):
            top, down = _matrix(rows[index], row_weights[index])
            left, across = _matrix(columns[index], column_weights[index])
            part = values[top : top + down.shape[1], left : left + across.shape[1]]
            lines = down @ part.reshape(len(part), -1)
            pooled[place] = across @ lines.reshape(self.size, -1, channels)


def _matrix(pixels: np.ndarray, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the first pixel along a side, and the weights of the pixels from there on for each bin (bins, pixels)."""
    first = int(pixels.min())
    bins, count = len(pixels), int(pixels.max()) - first + 1
    flat = (np.arange(bins)[:, None] * count + pixels - first).ravel()
    return first, np.bincount(flat, weights.ravel(), bins * count).astype(np.float32).reshape(bins, count)


def _along(start: np.ndarray, end: np.ndarray, length: int, bins: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels along one side of the map, and their weights, for each bin of each region (R, bins, 2 S)."""
    step = (np.maximum(end - start, np.float32(1)) / np.float32(bins))[:, None, None]
    index = np.arange(bins, dtype=np.float32)[:, None]
    point = np.arange(samples, dtype=np.float32)
    places = start[:, None, None] + index * step + (point + np.float32(0.5)) * step / np.float32(samples)
    outside = (places < -1) | (places > length)
    places = np.clip(places, 0, length - 1)
    low = np.floor(places)
    share = places - low
    pixels = np.stack([low, np.minimum(low + 1, length - 1)], -1).astype(np.int64)
    weights = np.where(outside[..., None], 0, np.stack([1 - share, share], -1)) / samples
    return pixels.reshape(len(start), bins, -1), weights.reshape(len(start), bins, -1)
