"""Decoder of networks that classify pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .head import Arrays, Graph, Head, Json, Thresholds, check_finite
from .prepare import Size

_STRIP = 2**18


@dataclass(frozen=True)
class PixelHead(Head[np.ndarray]):
    """Logits of every pixel, float32 (classes, h, w) per image; the graph resizes them to the size of the batch."""

    classes: Sequence[str]

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[np.ndarray]:
        """Return the logits of each image."""
        return [logits[:, :height, :width] for logits, (height, width) in zip(raw["logits"], sizes, strict=True)]

    def entry(self, answer: np.ndarray, seen: Size, size: Size, thresholds: Thresholds) -> Json:
        """Return the classes in the image with their share of the pixels, and the `label_map`."""
        check_finite(answer)
        labels = label_map(answer, size)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        predictions = [
            {"label": self.classes[i], "index": i, "share": round(float(counts[i] / labels.size), 6)} for i in order
        ]
        return {"predictions": predictions, "label_map": labels}


def label_map(logits: np.ndarray, size: Size) -> np.ndarray:
    """Return the most probable class of every pixel, computed in strips, so that memory grows only with the width.

    Args:
        logits: float32 (classes, h, w).
        size: Height and width of the result; logits are resized to it bilinearly.

    Returns:
        Class indices (H, W): uint8, or int64 for more than 256 classes.
    """
    found = np.empty(size, np.uint8 if len(logits) <= 256 else np.int64)
    step = max(1, _STRIP // size[1])
    left, right, across = _neighbors(np.arange(size[1]), logits.shape[2], size[1])
    for top in range(0, size[0], step):
        rows = np.arange(top, min(size[0], top + step))
        upper, lower, down = _neighbors(rows, logits.shape[1], size[0])
        strip = logits[:, upper] + down[:, None] * (logits[:, lower] - logits[:, upper])
        if logits.shape[2] != size[1]:
            strip = strip[:, :, left] + across * (strip[:, :, right] - strip[:, :, left])
        found[rows] = strip.argmax(0)
    return found


def _neighbors(places: np.ndarray, size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source pixels of each pixel along a side, and the weight of the second."""
    exact = np.clip((places + 0.5) * (size / wanted) - 0.5, 0, size - 1)
    low = np.floor(exact).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (exact - low).astype(np.float32)
