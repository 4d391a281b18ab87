"""Augmentation and resizing of images with boxes, masks and keypoints, on torchvision's transforms v2.

A sample is what `DetectionDataset.sample` returns. Geometry moves image, boxes, masks and keypoints together; what
leaves the image falls away. Nothing is normalised here: the detector does that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F2

from fishnet.config import RegionAugmentConfig
from fishnet.errors import UsageError

Sample = dict[str, Any]
Draw = Callable[[], Sample]
_FILL = 114  # the grey of what lies outside an image, near the mean of natural photos


class Resize:
    """Shorter side to `short` pixels, the longer to at most `longest`; of several lengths one is drawn."""

    def __init__(self, short: list[int], longest: int) -> None:
        self.short, self.longest = short, longest

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample in its new size."""
        short = self.short[int(torch.randint(len(self.short), ()))] if len(self.short) > 1 else self.short[0]
        return _scaled(sample, fit_factor(sample["image"], short, self.longest))

    def __repr__(self) -> str:
        return f"Resize(short={self.short}, longest={self.longest})"


def fit_factor(image: Tensor, short: int, longest: int) -> float:
    """Return the scale that makes the shorter side `short` pixels, and the longer at most `longest`."""
    height, width = image.shape[-2:]
    return min(short / min(height, width), longest / max(height, width))


def resized(image: Tensor, short: int, longest: int) -> Tensor:
    """Return an image (3, H, W) alone in the size of `eval_pipeline`."""
    factor = fit_factor(image, short, longest)
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    return image if size == list(image.shape[-2:]) else F2.resize(image, size, antialias=True)


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., arXiv 2012.07177): scaled at random, then cropped or padded to a square.

    Args:
        size: Side of the square in pixels.
        scale: Range of the scale; 1 makes the longer side `size`.
    """

    def __init__(self, size: int, scale: tuple[float, float]) -> None:
        self.size, self.scale = size, scale

    def __call__(self, sample: Sample) -> Sample:
        """Return a sample of size x size pixels."""
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        sample = _scaled(sample, factor * self.size / max(sample["image"].shape[-2:]))
        height, width = sample["image"].shape[-2:]
        top, left = (int(torch.randint(max(0, side - self.size) + 1, ())) for side in (height, width))
        sample = _apply(sample, F2.crop, top, left, min(height, self.size), min(width, self.size))
        height, width = sample["image"].shape[-2:]
        border = [0, 0, self.size - width, self.size - height]
        return sanitise(_padded(sample, border) if any(border) else sample)

    def __repr__(self) -> str:
        return f"ScaleJitter(size={self.size}, scale={self.scale})"


class Flip:
    """Mirror left and right with a probability; keypoints named left_... and right_... change places."""

    def __init__(self, probability: float, keypoint_names: list[str] | None = None) -> None:
        self.probability = probability
        self.order = mirrored_order(keypoint_names or [])

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample, mirrored or not."""
        if float(torch.rand(())) >= self.probability:
            return sample
        sample = _apply(sample, F2.horizontal_flip)
        target = sample["target"]
        if "keypoints" in target and self.order:
            sample = {**sample, "target": {**target, "keypoints": target["keypoints"][:, self.order]}}
        return sample

    def __repr__(self) -> str:
        return f"Flip(p={self.probability})"


def mirrored_order(names: list[str]) -> list[int]:
    """Return which keypoint takes the place of each in a mirrored image."""
    places = {name: index for index, name in enumerate(names)}
    swaps = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    order = []
    for index, name in enumerate(names):
        other = next((name.replace(a, b) for a, b in swaps.items() if a in name), name)
        order.append(places.get(other, index))
    return order


class IouCrop:
    """Random part that keeps some object well inside (SSD, arXiv 1512.02325), or the whole image."""

    def __init__(self) -> None:
        self.crop = v2.RandomIoUCrop(min_scale=0.3)

    def __call__(self, sample: Sample) -> Sample:
        """Return the part; objects whose centre it leaves out are gone."""
        if not len(sample["target"]["boxes"]):
            return sample
        # v2 marks lost boxes by shrinking them to nothing; keypoints go along as plain pairs
        moved = _apply(sample, lambda *values: self.crop(*values), together=True)
        return sanitise(moved)

    def __repr__(self) -> str:
        return "IouCrop()"


class Photometric:
    """Random brightness, contrast, saturation, hue and order of channels (SSD)."""

    def __init__(self) -> None:
        self.distort = v2.RandomPhotometricDistort()

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample in other colours."""
        return {**sample, "image": self.distort(sample["image"])}

    def __repr__(self) -> str:
        return "Photometric()"


class CopyPaste:
    """Paste some objects of another image, by their masks (Ghiasi et al., arXiv 2012.07177)."""

    def __init__(self, probability: float, prepare: Callable[[Sample], Sample]) -> None:
        self.probability, self.prepare = probability, prepare

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        """Return the sample with objects of one that `draw` gives; hidden objects shrink or fall away."""
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
    """Return `below` with the objects of `above` at the same place, cut at its border."""
    height, width = below["image"].shape[-2:]
    masks = torch.zeros(len(above["target"]["labels"]), height, width, dtype=torch.uint8)
    source = above["target"]["masks"]
    h, w = min(height, source.shape[-2]), min(width, source.shape[-1])
    masks[:, :h, :w] = source[:, :h, :w]
    cover = masks.amax(0).bool()
    image = below["image"].as_subclass(Tensor).clone()
    image[:, :h, :w] = torch.where(cover[:h, :w], above["image"][:, :h, :w].as_subclass(Tensor), image[:, :h, :w])
    old = below["target"]["masks"].as_subclass(Tensor) * (~cover).to(torch.uint8)
    left = old.flatten(1).sum(1)
    whole = below["target"]["masks"].flatten(1).sum(1).clamp(min=1)
    target = dict(below["target"])
    boxes = target["boxes"].as_subclass(Tensor).clone()
    hidden = left < whole
    if hidden.any():
        boxes[hidden] = mask_boxes(old[hidden])
    merged = {
        "boxes": torch.cat([boxes, mask_boxes(masks)]),
        "labels": torch.cat([target["labels"], above["target"]["labels"]]),
        "masks": torch.cat([old, masks]),
    }
    # an object of which less than a tenth is seen would teach the network to guess
    keep = torch.cat([left >= 0.1 * whole, (masks > 0).flatten(1).any(1)])
    return sanitise(_select(_rebuilt(below, image, merged), keep))


class Mosaic:
    """Four images around a random point of a square (YOLOv4, arXiv 2004.10934)."""

    def __init__(self, probability: float, size: int) -> None:
        self.probability, self.size = probability, size

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        """Return the sample, or a square of it and three others that `draw` gives."""
        if float(torch.rand(())) >= self.probability or "keypoints" in sample["target"]:
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
        image = sum(part["image"].as_subclass(Tensor).int() for part in parts).to(torch.uint8)
        merged = {name: torch.cat([_plain(part["target"][name]) for part in parts]) for name in parts[0]["target"]}
        return sanitise(_rebuilt(sample, image, merged))

    def _part(self, sample: Sample, place: tuple[int, int, int, int]) -> Sample:
        """Return a sample on a black square, cut to its place."""
        top, left, bottom, right = place
        height, width = bottom - top, right - left
        h, w = sample["image"].shape[-2:]
        sample = _scaled(sample, max(height / h, width / w))
        sample = sanitise(_apply(sample, F2.crop, 0, 0, height, width))
        border = [left, top, self.size - right, self.size - bottom]
        return _apply(sample, F2.pad, border, 0)

    def __repr__(self) -> str:
        return f"Mosaic(p={self.probability}, size={self.size})"


class Pipeline:
    """Steps one after the other; those that mix images get a function that draws another raw sample."""

    def __init__(self, steps: list[Any], mixing: list[Any] | None = None) -> None:
        self.mixing, self.steps = mixing or [], steps

    def __call__(self, sample: Sample, draw: Draw | None = None) -> Sample:
        """Return what the last step makes of the sample; without `draw` nothing is mixed in."""
        for mix in self.mixing if draw is not None else ():
            sample = mix(sample, draw)
        for step in self.steps:
            sample = step(sample)
        return sample

    def __repr__(self) -> str:
        return "\n".join(["Pipeline:", *(f"  {step!r}" for step in [*self.mixing, *self.steps])])


def train_pipeline(
    augment: RegionAugmentConfig, size: int, longest: int, keypoint_names: list[str] | None = None
) -> Pipeline:
    """Return the augmentation of training samples.

    Args:
        augment: What to do.
        size: Shorter side, or with scale jitter the side of the square.
        longest: Bound of the longer side.
        keypoint_names: To know left from right.

    Raises:
        UsageError: A setting is out of range.
    """
    _check(augment, size, longest)
    mixing: list[Any] = []
    if augment.mosaic:
        mixing.append(Mosaic(augment.mosaic, size))
    if augment.copy_paste:
        mixing.append(CopyPaste(augment.copy_paste, Flip(0.5)))
    steps: list[Any] = []
    if augment.iou_crop:
        steps.append(IouCrop())
    # what costs time per pixel comes after the resizing, most photos being larger than what is trained on
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
    """Return the transform for judging: the shorter side to `size`, the longer to at most `longest`."""
    return Pipeline([Resize([size], longest)])


def sanitise(sample: Sample) -> Sample:
    """Cut boxes at the border of the image and leave out objects of which less than a pixel is left."""
    target = sample["target"]
    boxes = F2.clamp_bounding_boxes(target["boxes"])
    keep = ((boxes[:, 2] - boxes[:, 0]) >= 1) & ((boxes[:, 3] - boxes[:, 1]) >= 1)
    if "masks" in target:
        keep &= (target["masks"].as_subclass(Tensor) > 0).flatten(1).any(1)
    sample = {**sample, "target": {**target, "boxes": boxes}}
    return sample if bool(keep.all()) else _select(sample, keep)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (N, 4) around masks (N, H, W), x2 and y2 beyond the last pixel; an empty mask gives zeros."""
    boxes = torch.zeros(len(masks), 4)
    for index, mask in enumerate(masks):
        seen = mask > 0
        rows, columns = torch.where(seen.any(1))[0], torch.where(seen.any(0))[0]
        if len(rows):
            boxes[index] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    return boxes


def _select(sample: Sample, keep: Tensor) -> Sample:
    """Return the sample with some of its objects."""
    target = sample["target"]
    chosen = {name: tv_tensors.wrap(_plain(value)[keep], like=value) for name, value in target.items()}
    return {**sample, "target": chosen}


def _rebuilt(like: Sample, image: Tensor, target: dict[str, Tensor]) -> Sample:
    """Return a sample with new pixels and objects."""
    canvas = (image.shape[-2], image.shape[-1])
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=canvas)
    wrapped: dict[str, Any] = {**target, "boxes": boxes}
    if "masks" in target:
        wrapped["masks"] = tv_tensors.Mask(target["masks"])
    return {**like, "image": tv_tensors.Image(image), "target": wrapped}


def _plain(value: Any) -> Tensor:
    return value.as_subclass(Tensor) if isinstance(value, tv_tensors.TVTensor) else value


def _scaled(sample: Sample, factor: float) -> Sample:
    height, width = sample["image"].shape[-2:]
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    if size == [height, width]:
        return sample
    return _apply(sample, F2.resize, size, antialias=True)


def _padded(sample: Sample, border: list[int]) -> Sample:
    """Return the sample with a grey border (left, top, right, bottom); masks get zeros there."""
    padded = _apply(sample, F2.pad, border, 0)
    return {**padded, "image": F2.pad(sample["image"], border, _FILL)}


def _apply(sample: Sample, operation: Callable[..., Any], *args: Any, together: bool = False, **kwargs: Any) -> Sample:
    """Apply a geometric operation of torchvision to the image and everything that lies on it."""
    target = dict(sample["target"])
    image = sample["image"]
    boxes, masks, points = target["boxes"], target.get("masks"), target.get("keypoints")
    values: list[Any] = [image, boxes]
    if masks is not None:
        values.append(masks)
    if points is not None:
        values.append(tv_tensors.KeyPoints(points[..., :2], canvas_size=tuple(image.shape[-2:])))
    moved = list(operation(*values)) if together else [operation(value, *args, **kwargs) for value in values]
    target["boxes"] = moved[1]
    if masks is not None:
        target["masks"] = moved[2]
    if points is not None:
        target["keypoints"] = _keypoints(moved[-1], points[..., 2], moved[0].shape[-2:])
    return {**sample, "image": moved[0], "target": target}


def _keypoints(places: Any, visibility: Tensor, size: Any) -> Tensor:
    """Return keypoints (N, K, 3); those outside the image count as absent."""
    places = _plain(places).float()
    inside = (places >= 0).all(-1) & (places[..., 0] < size[1]) & (places[..., 1] < size[0])
    return torch.cat([places, (visibility * inside)[..., None]], dim=-1)


def _check(augment: RegionAugmentConfig, size: int, longest: int) -> None:
    for name in ("flip", "copy_paste", "mosaic"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UsageError(f"region.{name}: {getattr(augment, name)} is not a probability between 0 and 1")
    if augment.scale_jitter is not None and not 0 < augment.scale_jitter[0] <= augment.scale_jitter[1]:
        raise UsageError(f"region.scale_jitter: {list(augment.scale_jitter)} is not a range above 0")
    if augment.scale_jitter is not None and augment.short_edges:
        raise UsageError(
            f"region.short_edges {augment.short_edges} and scale_jitter {list(augment.scale_jitter)} both choose the "
            "size of an image: leave one out (--region.short-edges '[]' or --region.scale-jitter null)"
        )
    if min([size, longest, *augment.short_edges]) < 1:
        raise UsageError("region.short_edges, --size and --longest must be above 0")
    if longest < size:
        raise UsageError(f"--longest {longest} is smaller than --size {size}")
