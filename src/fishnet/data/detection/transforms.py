"""Augmentation and resizing of images with boxes, masks and keypoints, built on torchvision's transforms v2.

The transforms take samples as returned by `DetectionDataset.sample`. `fishnet.data.geometry` transforms image, boxes,
masks and keypoints together; objects that leave the image are removed. If there are masks, a cropped object gets the
bounding box of the rest of its mask; all other objects keep their annotated box. A target may have label maps (H, W) as
well, which are mixed as the images are; pixels of an image without one are `IGNORE`. The detector normalizes the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fishnet.config import AT_LEAST_1, NOT_NEGATIVE, PROBABILITY, Rules
from fishnet.data import geometry
from fishnet.data.augmentation import (
    CROWD_FIELDS,
    OBJECT_FIELDS,
    Draw,
    Flip,
    MixingStep,
    Photometric,
    Pipeline,
    Resize,
    ScaleJitter,
    Step,
    cropped,
    outlined,
    random_crop,
    sanitize,
    select,
    with_boxes,
)
from fishnet.data.geometry import IGNORE, Sample, canvas_size, mask_boxes, plain
from fishnet.errors import UsageError


class IouCrop:
    """Random crop with a minimum IoU with some object, or no crop (SSD, arXiv 1512.02325)."""

    def __init__(self) -> None:
        self.crop = v2.RandomIoUCrop(min_scale=0.3)

    def __call__(self, sample: Sample) -> Sample:
        """Crop the sample; objects whose center is outside the crop are removed."""
        if not len(sample["target"]["boxes"]):
            return sample
        place = self.crop.make_params([sample["image"], sample["target"]["boxes"]])
        if not place:
            return sample
        sample = select(sample, place.pop("is_within_crop_area"))
        return sanitize(cropped(sample, **place))

    def __repr__(self) -> str:
        return "IouCrop()"


class CopyPaste:
    """Paste some objects of another image using their masks (copy-paste, Ghiasi et al., arXiv 2012.07177).

    Objects without an outline are not pasted: their boxes would bring background along.
    """

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
        chosen &= outlined(other)
        if not chosen.any():
            return sample
        other = {**other, "target": {k: v for k, v in other["target"].items() if k not in CROWD_FIELDS}}
        return _pasted(sample, select(other, chosen))

    def __repr__(self) -> str:
        return f"CopyPaste(p={self.probability})"


def _pasted(below: Sample, above: Sample) -> Sample:
    """Return `below` with the objects of `above` pasted at the same position and clipped at its border."""
    above = _fitted(above, canvas_size(below))
    if not len(above["target"]["labels"]):
        return below
    cover = plain(above["target"]["masks"]).amax(0) > 0
    before = plain(below["target"]["masks"])
    after = before * (~cover).to(before.dtype)
    seen, whole = after.flatten(1).sum(1), before.flatten(1).sum(1)
    # a hole in an object does not change its box
    smaller = (mask_boxes(after) != mask_boxes(before)).any(1)
    hidden = {**below, "target": _hidden_keypoints({**below["target"], "masks": tv_tensors.Mask(after)}, cover)}
    hidden = with_boxes(hidden, smaller, mask_boxes(after[smaller]))
    # objects of which less than a tenth stays visible are removed, since they cannot be recognized
    hidden = select(hidden, (seen > 0) & (seen >= 0.1 * whole))
    return sanitize(_merged([hidden, above], [cover]))


def _fitted(sample: Sample, size: geometry.Size) -> Sample:
    """Crop or pad a sample at the bottom and right to a size (height, width)."""
    height, width = canvas_size(sample)
    sample = cropped(sample, 0, 0, min(height, size[0]), min(width, size[1]))
    border = [0, 0, max(0, size[1] - width), max(0, size[0] - height)]
    return sanitize(geometry.pad(sample, border, ignore=IGNORE))


def _hidden_keypoints(target: Sample, cover: Tensor) -> Sample:
    """Mark keypoints on covered pixels (H, W) as hidden: visibility 1 in COCO, labeled but not visible."""
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
        covers = torch.zeros(4, size, size, dtype=torch.bool)
        for cover, (top, left, bottom, right) in zip(covers, places, strict=True):
            cover[top:bottom, left:right] = True
        return sanitize(_merged(parts, list(covers[1:])))

    def _part(self, sample: Sample, place: tuple[int, int, int, int]) -> Sample:
        """Scale and crop a sample to its position (top, left, bottom, right), and pad it to the square."""
        top, left, bottom, right = place
        height, width = bottom - top, right - left
        h, w = canvas_size(sample)
        sample = geometry.rescale(sample, max(height / h, width / w))
        sample = sanitize(random_crop(sample, height, width))
        return geometry.pad(sample, [left, top, self.size - right, self.size - bottom], ignore=IGNORE)

    def __repr__(self) -> str:
        return f"Mosaic(p={self.probability}, size={self.size})"


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
    """Probability of copy-paste from another image, of objects with outlines."""
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
    mixing: list[MixingStep] = []
    if augment.mosaic:
        mixing.append(Mosaic(augment.mosaic, size))
    if augment.copy_paste:
        mixing.append(CopyPaste(augment.copy_paste, Flip(augment.flip, keypoint_names)))
    steps: list[Step] = []
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
    return Pipeline([*steps, sanitize], mixing)


def _merged(parts: list[Sample], covers: list[Tensor]) -> Sample:
    """Return one sample with the objects of several samples of the same image size.

    Args:
        parts: Samples; everything that is not listed here is that of the first.
        covers: Pixels (H, W), bool, where the image and the label maps of each further sample are shown.
    """
    targets = [part["target"] for part in parts]
    merged = dict(targets[0])
    for name in OBJECT_FIELDS & merged.keys():
        value, joined = merged[name], torch.cat([plain(target[name]) for target in targets])
        merged[name] = tv_tensors.wrap(joined, like=value) if isinstance(value, tv_tensors.TVTensor) else joined
    label_maps = {
        name: value
        for target in targets
        for name, value in target.items()
        if name not in OBJECT_FIELDS and isinstance(value, tv_tensors.Mask)
    }
    for name, like in label_maps.items():
        layers = [plain(target.get(name, torch.full_like(plain(like), IGNORE))) for target in targets]
        merged[name] = tv_tensors.wrap(_layered(layers, covers), like=like)
    known = [target["annotated"] for target in targets if "annotated" in target]
    if known:  # a class is annotated in the mosaic if it is annotated in every part
        merged["annotated"] = torch.stack(known).all(0)
    merged |= _all_crowds(targets)
    image = _layered([plain(part["image"]) for part in parts], covers)
    return {**parts[0], "image": tv_tensors.Image(image), "target": merged}


def _all_crowds(targets: list[Sample]) -> Sample:
    """Return the crowds of several targets of the same image size; nothing if there are none."""
    found: Sample = {}
    for name in sorted(CROWD_FIELDS):
        values = [target[name] for target in targets if name in target]
        if values:
            joined = torch.cat([plain(value) for value in values])
            found[name] = tv_tensors.wrap(joined, like=values[0]) if name == "crowds" else joined
    return found


def _layered(layers: list[Tensor], covers: list[Tensor]) -> Tensor:
    """Return the first layer (..., H, W) with each further one shown where its cover (H, W) is true."""
    shown = layers[0]
    for layer, cover in zip(layers[1:], covers, strict=True):
        shown = torch.where(cover, layer, shown)
    return shown


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
