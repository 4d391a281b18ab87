"""Types of detection data: samples, targets and batches, and the entries of COCO annotation files.

The entries are those of https://cocodataset.org/#format-data. Annotation files come from many tools, so an entry is
guaranteed to follow the format only after `fishnet.data.detection.entries` has checked it.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor

from fishnet.models.heads.types import Size, Target


class SampleTarget(TypedDict):
    """Ground truth of one image: N objects with boxes, optionally masks or K keypoints; N may be 0, without crowds.

    Coordinates are continuous, see `fishnet.data.geometry`."""

    boxes: Tensor
    """float32 (N, 4): x1, y1, x2, y2 in pixels of the image tensor."""
    labels: Tensor
    """int64 (N,): class indices."""
    annotated: NotRequired[Tensor]
    """bool (classes,): which classes were annotated in the image; all if missing."""
    crowds: NotRequired[Tensor]
    """float32 (M, 4): boxes of the crowds, if there are any."""
    crowd_labels: NotRequired[Tensor]
    """int64 (M,): class indices of the crowds."""
    seed: Tensor
    """int64 scalar, a function of (seed, epoch, index): seeds the sampling of regions in the loss."""
    masks: NotRequired[Tensor]
    """uint8 (N, H, W)."""
    outlined: NotRequired[Tensor]
    """bool (N,): whether the mask of an object is its outline; otherwise it has none, and the mask is its box."""
    keypoints: NotRequired[Tensor]
    """float32 (N, K, 2): continuous x, y."""
    keypoints_visibility: NotRequired[Tensor]
    """float32 (N, K): 0 absent, 1 hidden, 2 visible."""


class Sample(TypedDict):
    """Element of a detection data set."""

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
    """Several samples; images and targets stay in lists, since their sizes differ. Targets are those of the heads."""

    image: list[Tensor]
    target: list[Target]
    size: list[Size]
    index: Tensor
    """int64 (B,)."""
    bad: list[str]


class ImageEntry(TypedDict, total=False):
    """Element of `images` in a COCO file."""

    id: int
    file_name: str
    width: int
    height: int
    label: int | None
    """Index of the class of the image in the list `labels` of the document."""
    annotated_category_ids: list[int]
    """Categories that were annotated in the image; without it all, with an empty list none."""


class AnnotationEntry(TypedDict, total=False):
    """Element of `annotations` in a COCO file."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    segmentation: list[list[float]] | dict[str, object]
    """Polygons, or run lengths as `size` and `counts`."""
    keypoints: list[float]


class CategoryEntry(TypedDict, total=False):
    """Element of `categories` in a COCO file."""

    id: int
    name: str
    supercategory: str
    keypoints: list[str]


class Document(TypedDict):
    """Content of a COCO annotation file; only the presence of the three lists is guaranteed."""

    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]
