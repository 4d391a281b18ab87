"""Augmentation and resizing of images with a label map.

The transforms take samples as returned by `SegmentationDataset.sample`. `fishnet.data.geometry` moves the image and its
label map together. The network normalizes the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fishnet.config import PROBABILITY, Rules
from fishnet.data import geometry
from fishnet.data.augmentation import Flip, Photometric, Pipeline, Step, pad_to, random_crop, resized
from fishnet.data.geometry import IGNORE, Sample, canvas_size, plain
from fishnet.errors import UsageError
from fishnet.models.heads.types import Size

EvalSize = int | Size | None
"""Size of an image in evaluation: its shorter side, its exact (height, width), or None for its own size."""
_TRIES = 10
_UNLIMITED = 1 << 30


class RandomScale:
    """Resize the shorter side to a random multiple of `short` pixels.

    Args:
        short: Shorter side in pixels at scale 1; None: that of the image.
        scale: Range of the scale factor.
        longest: Maximum of the longer side in pixels at scale 1.
    """

    def __init__(self, short: int | None, scale: tuple[float, float], longest: int = _UNLIMITED) -> None:
        self.short, self.scale, self.longest = short, scale, longest

    def __call__(self, sample: Sample) -> Sample:
        """Resize the sample."""
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        size = canvas_size(sample)
        base = geometry.fit_factor(size, min(size) if self.short is None else self.short, self.longest)
        return geometry.rescale(sample, factor * base)

    def __repr__(self) -> str:
        return f"RandomScale(short={self.short}, scale={self.scale})"


class ClassCrop:
    """Random crop in which no class has more than a given fraction of the labeled pixels (as in MMSegmentation).

    Up to 10 crops are drawn; if none is accepted, the last one is used. Smaller images are padded at
    the bottom and right.

    Args:
        size: Height and width in pixels.
        max_class_share: Maximum fraction of one class; 1 accepts the first crop.
        ignore_index: Value of ignored pixels and of padding.
    """

    def __init__(self, size: Size, max_class_share: float = 0.75, ignore_index: int = IGNORE) -> None:
        self.size, self.max_class_share, self.ignore_index = size, max_class_share, ignore_index

    def __call__(self, sample: Sample) -> Sample:
        """Return a sample of exactly that size."""
        height, width = canvas_size(sample)
        limited = self.max_class_share < 1 and (height > self.size[0] or width > self.size[1])
        for _ in range(_TRIES if limited else 1):
            chosen = random_crop(sample, *self.size)
            if not limited or self._largest_share(chosen["target"]["label_map"]) < self.max_class_share:
                break
        return pad_to(chosen, *self.size, ignore=self.ignore_index)

    def _largest_share(self, label_map: Tensor) -> float:
        """Return the fraction of the most frequent class among the labeled pixels; 1 if there are none."""
        counts = torch.bincount(plain(label_map).flatten(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return float(counts.max() / counts.sum()) if counts.any() else 1.0

    def __repr__(self) -> str:
        return f"ClassCrop(size={self.size}, max_class_share={self.max_class_share})"


class ResizeImage:
    """Resize the image only: predictions are compared with the label map at the size of the file."""

    def __init__(self, size: EvalSize, longest: int | None = None) -> None:
        self.size, self.longest = size, longest

    def __call__(self, sample: Sample) -> Sample:
        """Resize the image of the sample."""
        return {**sample, "image": prepared(sample["image"], self.size, self.longest)}

    def __repr__(self) -> str:
        return f"ResizeImage(size={self.size}, longest={self.longest})"


def prepared(image: Tensor, size: EvalSize, longest: int | None = None) -> Tensor:
    """Resize a single image (3, H, W) as evaluation does.

    Args:
        image: Image, uint8 or float.
        size: Shorter side, exact (height, width), or None to keep the size of the image.
        longest: Maximum of the longer side in pixels, unless the size is exact.
    """
    if isinstance(size, tuple):
        return geometry.resize({"image": image}, size)["image"] if tuple(image.shape[-2:]) != size else image
    short = min(image.shape[-2:]) if size is None else size
    return resized(image, short, _UNLIMITED if longest is None else longest)


@dataclass
class AugmentConfig:
    """Augmentation of training images with label maps."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale; 1 is the size of evaluation."""
    crop: tuple[int, int] | None = None
    """Height and width of the random crop in pixels; None: a square of --size."""
    max_class_share: float = 0.75
    """Maximum fraction of one class in a crop; other crops are drawn again, up to 10 times; 1 disables it."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""

    RULES: ClassVar[Rules] = {PROBABILITY: "flip"}


def train_pipeline(
    augment: AugmentConfig, size: int | None, ignore_index: int = IGNORE, longest: int = _UNLIMITED
) -> Pipeline:
    """Return the augmentation pipeline for training samples, all of one size.

    Args:
        augment: Augmentation settings.
        size: Shorter side in pixels at scale 1; None: that of the image, which needs `augment.crop`.
        ignore_index: Value of ignored pixels in label maps, also of new pixels.
        longest: Maximum of the longer side in pixels at scale 1.

    Raises:
        UsageError: A setting is out of range.
    """
    _check(augment, size)
    crop = augment.crop or (size or 0, size or 0)
    steps: list[Step] = [
        RandomScale(size, augment.scale, longest),
        ClassCrop(crop, augment.max_class_share, ignore_index),
    ]
    if augment.flip:
        steps.append(Flip(augment.flip))
    if augment.photometric:
        steps.append(Photometric(channels=False))
    return Pipeline(steps)


def eval_pipeline(size: EvalSize, longest: int | None = None) -> Pipeline:
    """Return the transform for evaluation, which resizes the image and keeps the size of the label map.

    Args:
        size: Shorter side, exact (height, width), or None to keep the size of the image.
        longest: Maximum of the longer side in pixels, unless the size is exact.
    """
    return Pipeline([ResizeImage(size, longest)])


def _check(augment: AugmentConfig, size: int | None) -> None:
    low, high = augment.scale
    if not 0 < low <= high:
        raise UsageError(f"augment.scale must be a range [low, high] with 0 < low <= high, not {[low, high]}")
    if not 0 <= augment.flip <= 1:
        raise UsageError(f"augment.flip must be a probability between 0 and 1, not {augment.flip}")
    if not 0 < augment.max_class_share <= 1:
        raise UsageError(
            f"augment.max_class_share must be above 0 and at most 1, where 1 disables it, not {augment.max_class_share}"
        )
    if size is not None and size < 1:
        raise UsageError(f"--size must be at least 1 pixel, not {size}")
    if augment.crop is None and size is None:
        raise UsageError("training at the images' own sizes needs the size of the crops: --augment.crop [512,512]")
    if augment.crop is not None and min(augment.crop) < 1:
        raise UsageError(f"augment.crop must be [height, width] of at least 1 pixel, not {list(augment.crop)}")
