"""Augmentation and resizing that tasks share, built on torchvision's transforms v2.

The transforms take samples with an `image` and a `target`, a dictionary that may have `boxes`, `masks` and `keypoints`
of objects, a label map, or any of them: `fishnet.data.geometry` transforms them together. Objects that leave the image
are removed. If there are masks, a cropped object gets the bounding box of the rest of its mask; all other objects keep
their annotated box, and so do those that `outlined` marks as having no outline, whose mask is their box. New pixels of
a label map are `IGNORE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F2

from fishnet.data import geometry
from fishnet.data.geometry import IGNORE, VISIBILITY, Sample, canvas_size, mask_boxes, plain
from fishnet.data.mirroring import mirrored_order
from fishnet.models.heads.types import Size
from fishnet.runner import prepare
from fishnet.runner.prepare import fitted

Draw = Callable[[], Sample]
"""Function that returns another untransformed sample, to mix in."""
Step = Callable[[Sample], Sample]
MixingStep = Callable[[Sample, Draw], Sample]
OBJECT_FIELDS = frozenset({"boxes", "labels", "masks", "outlined", "keypoints", "keypoints" + VISIBILITY})
"""Entries of a target with one value per object; all others belong to the image."""
CROWD_FIELDS = frozenset({"crowds", "crowd_labels"})
"""Entries of a target with one value per crowd."""
_FILL = 114  # gray value of padding, near the mean of natural images


class Resize:
    """Resize the shorter side to one of the lengths `short`, drawn at random, and the longer to at most `longest`."""

    def __init__(self, short: list[int], longest: int) -> None:
        self.short, self.longest = short, longest

    def __call__(self, sample: Sample) -> Sample:
        """Resize the sample."""
        short = self.short[int(torch.randint(len(self.short), ()))] if len(self.short) > 1 else self.short[0]
        return geometry.rescale(sample, geometry.fit_factor(canvas_size(sample), short, self.longest))

    def __repr__(self) -> str:
        return f"Resize(short={self.short}, longest={self.longest})"


def resized(image: Tensor, short: int, longest: int) -> Tensor:
    """Resize a single image (3, H, W) in the same way as `eval_pipeline`."""
    before = image.shape[-2], image.shape[-1]
    return resized_to(image, fitted(before, short, longest))


def resized_to(image: Tensor, size: Size) -> Tensor:
    """Resize a single image (3, H, W) to a height and width as evaluation, prediction and exported networks do it."""
    if tuple(image.shape[-2:]) == size:
        return image
    if image.dtype != torch.uint8:
        return F2.resize(image, list(size), antialias=True)
    pixels = prepare.resized(plain(image).permute(1, 2, 0).contiguous().numpy(), size)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Fit:
    """Resize for evaluation: shorter side to `short` pixels, longer side to at most `longest`."""

    def __init__(self, short: int, longest: int) -> None:
        self.short, self.longest = short, longest

    def __call__(self, sample: Sample) -> Sample:
        """Resize the sample."""
        return geometry.resize(sample, fitted(canvas_size(sample), self.short, self.longest), resized_to)

    def __repr__(self) -> str:
        return f"Fit(short={self.short}, longest={self.longest})"


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., arXiv 2012.07177): random scaling, then crop or padding to a square.

    Args:
        size: Side of the square in pixels.
        scale: Range of the scale factor; with 1 the longer side is `size`.
    """

    def __init__(self, size: int, scale: tuple[float, float]) -> None:
        self.size, self.scale = size, scale

    def __call__(self, sample: Sample) -> Sample:
        """Return a sample of size x size pixels."""
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        sample = geometry.rescale(sample, factor * self.size / max(canvas_size(sample)))
        sample = random_crop(sample, self.size, self.size)
        return sanitize(pad_to(sample, self.size, self.size))

    def __repr__(self) -> str:
        return f"ScaleJitter(size={self.size}, scale={self.scale})"


class Flip:
    """Random horizontal flip; exchanges keypoints such as `left_eye` and `right_eye`."""

    def __init__(self, probability: float, keypoint_names: list[str] | None = None) -> None:
        self.probability = probability
        self.order = mirrored_order(keypoint_names or [])

    def __call__(self, sample: Sample) -> Sample:
        """Flip the sample with the given probability."""
        if float(torch.rand(())) >= self.probability:
            return sample
        sample = geometry.flip(sample)
        if not self.order:
            return sample
        target = dict(sample["target"])
        for name in ("keypoints", "keypoints" + VISIBILITY):
            if name in target:
                target[name] = indexed(target[name], (slice(None), self.order))
        return {**sample, "target": target}

    def __repr__(self) -> str:
        return f"Flip(p={self.probability})"


def cropped(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crop to a rectangle; objects whose mask is cut get the bounding box of the rest of it."""
    moved = geometry.crop(sample, top, left, height, width)
    if "masks" not in sample["target"]:
        return moved
    masks = plain(sample["target"]["masks"])
    beyond = masks[:, :top], masks[:, top + height :], masks[:, :, :left], masks[:, :, left + width :]
    cut = torch.zeros(len(masks), dtype=torch.bool)
    for strip in beyond:
        if strip.numel():
            cut |= strip.amax((1, 2)) > 0
    cut &= outlined(sample)
    return with_boxes(moved, cut, mask_boxes(moved["target"]["masks"][cut])) if cut.any() else moved


def random_crop(sample: Sample, height: int, width: int) -> Sample:
    """Crop to at most height x width pixels at a random position."""
    before = canvas_size(sample)
    top, left = (int(torch.randint(max(0, a - b) + 1, ())) for a, b in zip(before, (height, width), strict=True))
    return cropped(sample, top, left, min(height, before[0]), min(width, before[1]))


def pad_to(sample: Sample, height: int, width: int, ignore: int = IGNORE) -> Sample:
    """Pad at the bottom and right to at least height x width pixels; new pixels of label maps are `ignore`."""
    before = canvas_size(sample)
    border = [0, 0, max(0, width - before[1]), max(0, height - before[0])]
    return geometry.pad(sample, border, fill=_FILL, ignore=ignore) if any(border) else sample


class _KeepChannels(v2.RandomPhotometricDistort):
    """Photometric distortion that keeps the order of the channels."""

    def make_params(self, flat_inputs: list[object]) -> dict[str, object]:
        """Return the parameters of one distortion."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class Photometric:
    """Random brightness, contrast, saturation, hue and channel order (SSD, arXiv 1512.02325).

    Args:
        channels: Whether the order of the channels is changed too, which turns a blue sky red.
    """

    def __init__(self, channels: bool = True) -> None:
        self.distort = v2.RandomPhotometricDistort() if channels else _KeepChannels()

    def __call__(self, sample: Sample) -> Sample:
        """Distort the colors of the sample."""
        return {**sample, "image": self.distort(sample["image"])}

    def __repr__(self) -> str:
        return "Photometric()" if not isinstance(self.distort, _KeepChannels) else "Photometric(channels=False)"


class Pipeline:
    """Composition of steps; mixing steps also get a function that draws another untransformed sample."""

    def __init__(self, steps: Sequence[Step], mixing: Sequence[MixingStep] = ()) -> None:
        self.mixing, self.steps = mixing, steps

    def __call__(self, sample: Sample, draw: Draw | None = None) -> Sample:
        """Apply all steps in order; without `draw`, mixing steps are skipped."""
        if draw is not None:
            for mix in self.mixing:
                sample = mix(sample, draw)
        for step in self.steps:
            sample = step(sample)
        return sample

    def __repr__(self) -> str:
        return "\n".join(["Pipeline:", *(f"  {step!r}" for step in [*self.mixing, *self.steps])])


def eval_pipeline(size: int, longest: int) -> Pipeline:
    """Return the transform for evaluation: shorter side to `size` pixels, longer side to at most `longest`."""
    return Pipeline([Fit(size, longest)])


def sanitize(sample: Sample) -> Sample:
    """Clip boxes to the image; remove objects with a box below 1 pixel in width or height, or with an empty mask."""
    target = sample["target"]
    if "boxes" not in target:
        return sample
    boxes = F2.clamp_bounding_boxes(target["boxes"])
    keep = ((boxes[:, 2] - boxes[:, 0]) >= 1) & ((boxes[:, 3] - boxes[:, 1]) >= 1)
    if "masks" in target:
        keep &= plain(target["masks"]).flatten(1).any(1).bool() | ~outlined(sample)
    sample = {**sample, "target": {**target, "boxes": boxes}}
    return sample if bool(keep.all()) else select(sample, keep)


def outlined(sample: Sample) -> Tensor:
    """Return which objects of a sample with masks have a known outline, bool (N,)."""
    target = sample["target"]
    return target.get("outlined", torch.ones(len(target["masks"]), dtype=torch.bool))


def select(sample: Sample, keep: Tensor) -> Sample:
    """Return the sample with the selected objects only."""
    chosen = {name: indexed(value, keep) for name, value in sample["target"].items() if name in OBJECT_FIELDS}
    return {**sample, "target": {**sample["target"], **chosen}}


def indexed(value: Tensor, index: Tensor | tuple[slice, list[int]]) -> Tensor:
    """Return value[index] with the tensor class of `value`."""
    chosen = plain(value)[index]
    return tv_tensors.wrap(chosen, like=value) if isinstance(value, tv_tensors.TVTensor) else chosen


def with_boxes(sample: Sample, which: Tensor, boxes: Tensor) -> Sample:
    """Return the sample with new boxes for the selected objects."""
    target = sample["target"]
    changed = plain(target["boxes"]).clone()
    changed[which] = boxes.to(changed.dtype)
    return {**sample, "target": {**target, "boxes": tv_tensors.wrap(changed, like=target["boxes"])}}
