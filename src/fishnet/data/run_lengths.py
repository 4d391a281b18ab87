"""Masks as run lengths in COCO's compressed encoding (https://cocodataset.org/#format-results)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor


class RunLengths(TypedDict):
    """Mask of one object."""

    size: list[int]
    """Height and width of the image."""
    counts: bytes | str
    """Compressed run lengths."""


def encode(masks: Tensor) -> list[RunLengths]:
    """Return the run lengths of masks (N, H, W), bool or uint8."""
    from faster_coco_eval.core import mask as codec

    runs: list[RunLengths] = codec.encode(np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0)))
    return runs


def decode(runs: Sequence[RunLengths], height: int, width: int) -> Tensor:
    """Return masks, uint8 (N, H, W), from their run lengths; N may be 0."""
    from faster_coco_eval.core import mask as codec

    if not len(runs):
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(codec.decode(list(runs)).transpose(2, 0, 1)))


def of_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RunLengths:
    """Return the run lengths of the union of polygons, each x0, y0, x1, y1, ... in pixels."""
    from faster_coco_eval.core import mask as codec

    return cast(RunLengths, codec.merge(codec.frPyObjects([list(one) for one in polygons], height, width)))


def of_box(box: Sequence[float], height: int, width: int) -> RunLengths:
    """Return the run lengths of a box: x, y, width, height in pixels."""
    from faster_coco_eval.core import mask as codec

    return cast(RunLengths, codec.frPyObjects([list(box)], height, width)[0])


def of_counts(counts: Sequence[int], height: int, width: int) -> RunLengths:
    """Return plain run lengths in compressed form; they alternate between background and object, column by column."""
    from faster_coco_eval.core import mask as codec

    return cast(RunLengths, codec.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width))


def bounding_boxes(runs: Sequence[RunLengths]) -> np.ndarray:
    """Return the bounding boxes of masks, float64 (N, 4): x, y, width, height in pixels."""
    from faster_coco_eval.core import mask as codec

    return np.asarray(codec.toBbox(list(runs)), dtype=np.float64).reshape(-1, 4)


def area(run: RunLengths) -> int:
    """Return the number of pixels of a mask."""
    from faster_coco_eval.core import mask as codec

    return int(codec.area([run])[0])


def counts_text(run: RunLengths) -> str:
    """Return the counts of run lengths as text, as in JSON files."""
    counts = run["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts
