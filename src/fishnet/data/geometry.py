"""Resize, crop, pad and flip samples: the image and all its targets are transformed together.

A sample is a dictionary, possibly nested, whose values are `tv_tensors`: `Image` (C, H, W), `BoundingBoxes` (N, 4),
`Mask` (N, H, W) for one mask per object or (H, W) for a label map, `KeyPoints` (..., 2). Everything else (labels,
numbers, plain tensors) is passed through unchanged. All operations return a new dictionary.

Coordinates of boxes and keypoints are continuous: x runs from 0 at the left edge of the image to W at its right edge,
and the center of the first pixel is at 0.5. A horizontal flip therefore maps x to W - x for both. (torchvision's own
flip of `KeyPoints` maps x to W - 1 - x, which suits pixel indices, while its resize multiplies by the ratio of the
sizes, which suits continuous coordinates.)

The visibility of keypoints is a plain tensor (...) next to the `KeyPoints` (..., 2), under the same name with the
suffix `_visibility`. A keypoint that leaves the image gets visibility 0 and keeps it if the image is padded later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F2

from fishnet.models.heads.types import Size

Sample = dict[str, Any]
Moved = TypeVar("Moved", bound=Mapping[str, object])
"""Type of a sample; an operation returns the type that it receives."""

IGNORE = 255
"""Value of label maps that losses and metrics ignore, by default."""
VISIBILITY = "_visibility"
"""Suffix that turns the name of a keypoint tensor into the name of its visibility."""


def canvas_size(sample: Mapping[str, object]) -> Size:
    """Return (height, width) of a sample's image, or of its masks, boxes or keypoints if it has no image.

    Raises:
        ValueError: The sample contains no tv_tensor.
    """
    found = _first(sample, tv_tensors.Image) or _first(sample, tv_tensors.TVTensor)
    if found is None:
        raise ValueError(f"the sample contains no tv_tensors, only the keys: {', '.join(sample) or 'none'}")
    return found


def resize(sample: Moved, size: Size, image: Callable[[Tensor, Size], Tensor] | None = None) -> Moved:
    """Resize to (height, width) pixels.

    Images are resized by antialiased bilinear interpolation; masks and label maps by NEAREST_EXACT, which takes the
    pixel at the center of the new one, so they stay aligned with the image.

    Args:
        sample: The sample.
        size: Height and width in pixels.
        image: Function that resizes an image (3, H, W) instead of torchvision's.
    """
    if tuple(size) == canvas_size(sample):
        return sample

    def one(value: tv_tensors.TVTensor) -> Tensor:
        if isinstance(value, tv_tensors.Mask):
            return _resized_mask(value, size)
        if image is not None and isinstance(value, tv_tensors.Image):
            return tv_tensors.Image(image(value, size))
        return F2.resize(value, list(size), antialias=True)

    return apply(sample, one)


def rescale(sample: Moved, factor: float) -> Moved:
    """Resize both sides by a factor, each rounded to whole pixels and at least 1."""
    return resize(sample, scaled_size(canvas_size(sample), factor))


def scaled_size(size: Size, factor: float) -> Size:
    """Return (height, width) times a factor, each rounded to whole pixels and at least 1."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fit_factor(size: Size, short: int, longest: int) -> float:
    """Return the scale factor that makes the shorter side `short` pixels and the longer side at most `longest`."""
    return min(short / min(size), longest / max(size))


def crop(sample: Moved, top: int, left: int, height: int, width: int) -> Moved:
    """Crop to a rectangle inside the image; boxes are clipped to it.

    Raises:
        ValueError: The rectangle extends beyond the image.
    """
    canvas = canvas_size(sample)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > canvas[0] or left + width > canvas[1]:
        raise ValueError(f"a crop of {height}x{width} at ({top}, {left}) extends beyond an image of {canvas}")
    return apply(sample, lambda value: F2.crop(value, top, left, height, width))


def pad(sample: Moved, border: list[int], fill: float = 0, ignore: int | None = None) -> Moved:
    """Pad the image.

    Args:
        sample: The sample.
        border: Pixels to add at the left, top, right and bottom.
        fill: Value of new pixels in images; in object masks it is 0.
        ignore: Value of new pixels in label maps, usually the index that the loss ignores.

    Raises:
        ValueError: The sample has a label map and `ignore` is None.
    """

    def one(value: tv_tensors.TVTensor) -> Tensor:
        if not isinstance(value, tv_tensors.Mask):
            return F2.pad(value, border, fill)
        if value.ndim == 2 and ignore is None:
            raise ValueError("padding a label map needs `ignore`, the value of its new pixels")
        return F2.pad(value, border, ignore if value.ndim == 2 else 0)

    return apply(sample, one)


def flip(sample: Moved) -> Moved:
    """Flip horizontally; keypoints keep their order (see `fishnet.data.mirroring`)."""

    def one(value: tv_tensors.TVTensor) -> Tensor:
        if not isinstance(value, tv_tensors.KeyPoints):
            return F2.horizontal_flip(value)
        places = plain(value).clone()
        places[..., 0] = value.canvas_size[1] - places[..., 0]
        return tv_tensors.wrap(places, like=value)

    return apply(sample, one)


def apply(sample: Moved, operation: Callable[[tv_tensors.TVTensor], Tensor]) -> Moved:
    """Apply an operation to every tv_tensor of a sample; keypoints that leave the image get visibility 0."""
    moved: Sample = {}
    for name, value in sample.items():
        if isinstance(value, dict):
            moved[name] = apply(value, operation)
        else:
            moved[name] = operation(value) if isinstance(value, tv_tensors.TVTensor) else value
    for name, value in moved.items():
        if isinstance(value, tv_tensors.KeyPoints) and name + VISIBILITY in moved:
            visibility = moved[name + VISIBILITY]
            moved[name + VISIBILITY] = visibility * inside(value).to(visibility.dtype)
    return cast(Moved, moved)


def inside(points: tv_tensors.KeyPoints) -> Tensor:
    """Return whether keypoints (..., 2) lie inside the image or on its border, bool (...)."""
    places = plain(points)
    height, width = points.canvas_size
    return (places >= 0).all(-1) & (places[..., 0] <= width) & (places[..., 1] <= height)


def plain(value: Tensor) -> Tensor:
    """Return a tv_tensor as a plain tensor; other tensors unchanged."""
    return value.as_subclass(Tensor) if isinstance(value, tv_tensors.TVTensor) else value


def _first(sample: Mapping[str, object], kind: type[Tensor]) -> Size | None:
    """Return (height, width) of the first tensor of a class, also in nested dictionaries; None if there is none."""
    for value in sample.values():
        if isinstance(value, Mapping):
            found = _first(value, kind)
            if found is not None:
                return found
        elif isinstance(value, kind):
            if isinstance(value, tv_tensors.BoundingBoxes | tv_tensors.KeyPoints):
                return int(value.canvas_size[0]), int(value.canvas_size[1])
            return int(value.shape[-2]), int(value.shape[-1])
    return None


def _resized_mask(mask: tv_tensors.Mask, size: Size) -> Tensor:
    """Resize a mask (..., H, W) to the nearest pixel centers.

    torchvision resizes masks with NEAREST, which takes the pixel at the corner of the new one: half a pixel off.
    """
    values = plain(mask)
    stacked = values[None] if values.ndim == 2 else values
    moved = F2.resize_image(stacked, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return tv_tensors.wrap(moved[0] if values.ndim == 2 else moved, like=mask)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the bounding boxes (N, 4) of masks (N, H, W); x2 and y2 are exclusive, an empty mask gives zeros."""
    seen = plain(masks)
    if not seen.numel():
        return torch.zeros(len(seen), 4)
    columns, rows = seen.amax(1) > 0, seen.amax(2) > 0
    x1, x2 = _extent(columns)
    y1, y2 = _extent(rows)
    return torch.stack([x1, y1, x2, y2], dim=1).float() * columns.any(1, keepdim=True)


def _extent(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first true index and one past the last, int64 (N,), of each row of a mask (N, L)."""
    marks = seen.to(torch.uint8)
    return marks.argmax(1), marks.shape[1] - marks.flip(1).argmax(1)
