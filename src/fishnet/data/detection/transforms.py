"""Augmentation and resizing of images with boxes, masks and keypoints, built on torchvision's transforms v2.

The transforms take samples as returned by `DetectionDataset.sample`. `fishnet.data.geometry` transforms image, boxes,
masks and keypoints together; objects that leave the image are removed. If there are masks, a cropped object gets the
bounding box of the rest of its mask; all other objects keep their annotated box. The detector normalises the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F2

from fishnet.config import AT_LEAST_1, NOT_NEGATIVE, PROBABILITY, Rules
from fishnet.data import geometry
from fishnet.data.detection.mirroring import mirrored_order
from fishnet.data.geometry import Sample, canvas_size, mask_boxes, plain
from fishnet.errors import UsageError

Draw = Callable[[], Sample]
_FILL = 114  # grey value of padding, near the mean of natural images


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
    size = geometry.scaled_size(before, geometry.fit_factor(before, short, longest))
    return image if size == before else F2.resize(image, list(size), antialias=True)


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
        height, width = canvas_size(sample)
        border = [0, 0, self.size - width, self.size - height]
        return sanitise(geometry.pad(sample, border, fill=_FILL) if any(border) else sample)

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
        for name in ("keypoints", "keypoints_visibility"):
            if name in target:
                target[name] = _indexed(target[name], (slice(None), self.order))
        return {**sample, "target": target}

    def __repr__(self) -> str:
        return f"Flip(p={self.probability})"


class IouCrop:
    """Random crop with a minimum IoU with some object, or no crop (SSD, arXiv 1512.02325)."""

    def __init__(self) -> None:
        self.crop = v2.RandomIoUCrop(min_scale=0.3)

    def __call__(self, sample: Sample) -> Sample:
        """Crop the sample; objects whose centre is outside the crop are removed."""
        if not len(sample["target"]["boxes"]):
            return sample
        place = self.crop.make_params([sample["image"], sample["target"]["boxes"]])
        if not place:
            return sample
        sample = _select(sample, place.pop("is_within_crop_area"))
        return sanitise(cropped(sample, **place))

    def __repr__(self) -> str:
        return "IouCrop()"


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
    return _with_boxes(moved, cut, mask_boxes(moved["target"]["masks"][cut])) if cut.any() else moved


def random_crop(sample: Sample, height: int, width: int) -> Sample:
    """Crop to at most height x width pixels at a random position."""
    before = canvas_size(sample)
    top, left = (int(torch.randint(max(0, a - b) + 1, ())) for a, b in zip(before, (height, width), strict=True))
    return cropped(sample, top, left, min(height, before[0]), min(width, before[1]))


class Photometric:
    """Random brightness, contrast, saturation, hue and channel order (SSD, arXiv 1512.02325)."""

    def __init__(self) -> None:
        self.distort = v2.RandomPhotometricDistort()

    def __call__(self, sample: Sample) -> Sample:
        """Distort the colours of the sample."""
        return {**sample, "image": self.distort(sample["image"])}

    def __repr__(self) -> str:
        return "Photometric()"


class CopyPaste:
    """Paste some objects of another image using their masks (copy-paste, Ghiasi et al., arXiv 2012.07177)."""

    def __init__(self, probability: float, prepare: Callable[[Sample], Sample]) -> None:
        self.probability, self.prepare = probability, prepare

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        """Paste objects of a sample from `draw`; objects that they cover are clipped or removed."""
        if float(torch.rand(())) >= self.probability or "masks" not in sample["target"]:
            return sample
        other = self.prepare(draw())
        count = len(other["target"]["labels"])
        if not count:
            return sample
        chosen = torch.rand(count) < 0.5
        if not chosen.any():
            chosen[int(torch.randint(count, ()))] = True
        return _pasted(sample, _select(other, chosen))

    def __repr__(self) -> str:
        return f"CopyPaste(p={self.probability})"


def _pasted(below: Sample, above: Sample) -> Sample:
    """Return `below` with the objects of `above` pasted at the same position and clipped at its border."""
    above = _fitted(above, canvas_size(below))
    if not len(above["target"]["labels"]):
        return below
    cover = plain(above["target"]["masks"]).amax(0) > 0
    image = torch.where(cover, plain(above["image"]), plain(below["image"]))
    before = plain(below["target"]["masks"])
    after = before * (~cover).to(before.dtype)
    seen, whole = after.flatten(1).sum(1), before.flatten(1).sum(1)
    # a hole in an object does not change its box
    smaller = (mask_boxes(after) != mask_boxes(before)).any(1)
    hidden = {**below, "target": _hidden_keypoints({**below["target"], "masks": tv_tensors.Mask(after)}, cover)}
    hidden = _with_boxes(hidden, smaller, mask_boxes(after[smaller]))
    # objects of which less than a tenth stays visible are removed, since they cannot be recognised
    hidden = _select(hidden, (seen > 0) & (seen >= 0.1 * whole))
    return sanitise(_merged(below, image, [hidden["target"], above["target"]]))


def _fitted(sample: Sample, size: geometry.Size) -> Sample:
    """Crop or zero-pad a sample at the bottom and right to a size (height, width)."""
    height, width = canvas_size(sample)
    sample = cropped(sample, 0, 0, min(height, size[0]), min(width, size[1]))
    border = [0, 0, max(0, size[1] - width), max(0, size[0] - height)]
    return sanitise(geometry.pad(sample, border))


def _hidden_keypoints(target: Sample, cover: Tensor) -> Sample:
    """Mark keypoints on covered pixels (H, W) as hidden: visibility 1 in COCO, labelled but not visible."""
    if "keypoints" not in target:
        return target
    points, visibility = target["keypoints"], target["keypoints_visibility"]
    places = plain(points).floor().long()
    rows = places[..., 1].clamp(0, cover.shape[0] - 1)
    columns = places[..., 0].clamp(0, cover.shape[1] - 1)
    covered = cover[rows, columns] & geometry.inside(points)
    return {**target, "keypoints_visibility": torch.where(covered, visibility.clamp(max=1), visibility)}


class Mosaic:
    """Mosaic of four images around a random point of a square (YOLOv4, arXiv 2004.10934)."""

    def __init__(self, probability: float, size: int) -> None:
        self.probability, self.size = probability, size

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        """Combine the sample with three others from `draw`, with the given probability."""
        if float(torch.rand(())) >= self.probability:
            return sample
        size = self.size
        middle = (size * (0.3 + 0.4 * torch.rand(2))).int().tolist()
        places = [
            (0, 0, middle[0], middle[1]),
            (0, middle[1], middle[0], size),
            (middle[0], 0, size, middle[1]),
            (middle[0], middle[1], size, size),
        ]
        parts = [self._part(one, place) for one, place in zip([sample, draw(), draw(), draw()], places, strict=True)]
        image = torch.stack([plain(part["image"]) for part in parts]).amax(0)
        return sanitise(_merged(sample, image, [part["target"] for part in parts]))

    def _part(self, sample: Sample, place: tuple[int, int, int, int]) -> Sample:
        """Scale and crop a sample to its place (top, left, bottom, right) in a square that is zero elsewhere."""
        top, left, bottom, right = place
        height, width = bottom - top, right - left
        h, w = canvas_size(sample)
        sample = geometry.rescale(sample, max(height / h, width / w))
        sample = sanitise(random_crop(sample, height, width))
        return geometry.pad(sample, [left, top, self.size - right, self.size - bottom])

    def __repr__(self) -> str:
        return f"Mosaic(p={self.probability}, size={self.size})"


class Pipeline:
    """Composition of steps; mixing steps also get a function that draws another untransformed sample."""

    def __init__(self, steps: list[Any], mixing: list[Any] | None = None) -> None:
        self.mixing, self.steps = mixing or [], steps

    def __call__(self, sample: Sample, draw: Draw | None = None) -> Sample:
        """Apply all steps in order; without `draw`, mixing steps are skipped."""
        for mix in self.mixing if draw is not None else ():
            sample = mix(sample, draw)
        for step in self.steps:
            sample = step(sample)
        return sample

    def __repr__(self) -> str:
        return "\n".join(["Pipeline:", *(f"  {step!r}" for step in [*self.mixing, *self.steps])])


@dataclass
class AugmentConfig:
    """Augmentation of training images with boxes, masks and keypoints."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    short_edges: list[int] = field(default_factory=list)
    """Lengths of the shorter side, one of which is drawn per image; empty: always --size."""
    scale_jitter: tuple[float, float] | None = None
    """Range of scales, such as [0.1, 2.0]; the image is then cropped or padded to a square of --size. None disables
    it."""
    photometric: bool = False
    """Random brightness, contrast, saturation and hue."""
    iou_crop: bool = False
    """Random crops that keep at least one object (SSD)."""
    copy_paste: float = 0.0
    """Probability of copy-paste from another image; needs masks."""
    mosaic: float = 0.0
    """Probability of a mosaic of four images."""
    mix_off_epochs: int = 0
    """Last epochs without mosaic and copy-paste."""
    repeat_threshold: float = 0.0
    """Repeat-factor sampling: images of classes in fewer than this fraction of images are repeated; 0 disables it."""
    group_by_aspect: bool = True
    """Make batches of images that are all wide or all tall, which reduces padding."""

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "short_edges",
        NOT_NEGATIVE: "mix_off_epochs",
        PROBABILITY: "repeat_threshold",
    }


def train_pipeline(
    augment: AugmentConfig, size: int, longest: int, keypoint_names: list[str] | None = None
) -> Pipeline:
    """Return the augmentation pipeline for training samples.

    Args:
        augment: Augmentation settings.
        size: Shorter side in pixels, or with scale jitter the side of the square.
        longest: Maximum of the longer side in pixels.
        keypoint_names: Names of the keypoints, from which pairs of left and right are found.

    Raises:
        UsageError: A setting is out of range.
    """
    _check(augment, size, longest)
    mixing: list[Any] = []
    if augment.mosaic:
        mixing.append(Mosaic(augment.mosaic, size))
    if augment.copy_paste:
        mixing.append(CopyPaste(augment.copy_paste, Flip(augment.flip, keypoint_names)))
    steps: list[Any] = []
    if augment.iou_crop:
        steps.append(IouCrop())
    # steps with a cost per pixel come after resizing, since most images are larger than the training size
    if augment.scale_jitter is not None:
        steps.append(ScaleJitter(size, augment.scale_jitter))
    else:
        steps.append(Resize(list(augment.short_edges) or [size], longest))
    if augment.flip:
        steps.append(Flip(augment.flip, keypoint_names))
    if augment.photometric:
        steps.append(Photometric())
    return Pipeline([*steps, sanitise], mixing)


def eval_pipeline(size: int, longest: int) -> Pipeline:
    """Return the transform for evaluation: shorter side to `size` pixels, longer side to at most `longest`."""
    return Pipeline([Resize([size], longest)])


def sanitise(sample: Sample) -> Sample:
    """Clip boxes to the image; remove objects with a box below 1 pixel in width or height, or with an empty mask."""
    target = sample["target"]
    boxes = F2.clamp_bounding_boxes(target["boxes"])
    keep = ((boxes[:, 2] - boxes[:, 0]) >= 1) & ((boxes[:, 3] - boxes[:, 1]) >= 1)
    if "masks" in target:
        keep &= plain(target["masks"]).flatten(1).any(1).bool()
    sample = {**sample, "target": {**target, "boxes": boxes}}
    return sample if bool(keep.all()) else _select(sample, keep)


def _select(sample: Sample, keep: Tensor) -> Sample:
    """Return the sample with the selected objects only."""
    return {**sample, "target": {name: _indexed(value, keep) for name, value in sample["target"].items()}}


def _indexed(value: Tensor, index: Any) -> Tensor:
    """Return value[index] with the tensor class of `value`."""
    chosen = plain(value)[index]
    return tv_tensors.wrap(chosen, like=value) if isinstance(value, tv_tensors.TVTensor) else chosen


def _with_boxes(sample: Sample, which: Tensor, boxes: Tensor) -> Sample:
    """Return the sample with new boxes for the selected objects."""
    target = sample["target"]
    changed = plain(target["boxes"]).clone()
    changed[which] = boxes.to(changed.dtype)
    return {**sample, "target": {**target, "boxes": tv_tensors.wrap(changed, like=target["boxes"])}}


def _merged(like: Sample, image: Tensor, targets: list[Sample]) -> Sample:
    """Return a sample with a new image and the objects of several targets of the same image size."""
    merged = {}
    for name, value in targets[0].items():
        joined = torch.cat([plain(target[name]) for target in targets])
        merged[name] = tv_tensors.wrap(joined, like=value) if isinstance(value, tv_tensors.TVTensor) else joined
    return {**like, "image": tv_tensors.Image(image), "target": merged}


def _check(augment: AugmentConfig, size: int, longest: int) -> None:
    for name in ("flip", "copy_paste", "mosaic"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UsageError(f"augment.{name} must be a probability between 0 and 1, not {getattr(augment, name)}")
    if augment.scale_jitter is not None and not 0 < augment.scale_jitter[0] <= augment.scale_jitter[1]:
        raise UsageError(
            f"augment.scale_jitter must be a range [low, high] with 0 < low <= high, not {list(augment.scale_jitter)}"
        )
    if augment.scale_jitter is not None and augment.short_edges:
        raise UsageError(
            f"augment.short_edges {augment.short_edges} and scale_jitter {list(augment.scale_jitter)} both set the "
            "image size; use only one of them (--augment.short-edges '[]' or --augment.scale-jitter null)"
        )
    if min([size, longest, *augment.short_edges]) < 1:
        raise UsageError("augment.short_edges, --size and --longest must be at least 1 pixel")
    if longest < size:
        raise UsageError(f"--longest {longest} must not be smaller than --size {size}")
