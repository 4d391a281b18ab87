"""Types of segmentation data: samples, targets and batches."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from fishnet.models.heads.types import Size


class SampleTarget(TypedDict):
    """Truth of one image."""

    label_map: Tensor
    """uint8 (H, W), or int64 for more than 255 classes: class indices, or the data set's `ignore_index`. In training it
    has the size of the image tensor, in evaluation that of the file."""


class Sample(TypedDict):
    """Element of a segmentation data set."""

    image: Tensor
    """uint8 (3, H, W) after the transform."""
    target: SampleTarget
    size: Size
    """(height, width) of the image in its file."""
    index: int
    """Requested index."""
    bad: str
    """Path of the requested image if it could not be read and the next good one replaces it, else empty."""


class Batch(TypedDict):
    """Several samples; images and targets stay in lists, since their sizes differ."""

    image: list[Tensor]
    target: list[SampleTarget]
    size: list[Size]
    index: Tensor
    """int64 (B,)."""
    bad: list[str]
