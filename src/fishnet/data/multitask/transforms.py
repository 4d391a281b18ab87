"""Augmentation and resizing of images with labels of several levels.

`fishnet.data.geometry` moves all of them together. Images are not mixed with each other, since
each has its own levels of labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fishnet.config import AT_LEAST_1, PROBABILITY, Rules
from fishnet.data.augmentation import Flip, Photometric, Pipeline, Resize, ScaleJitter, Step, sanitize
from fishnet.errors import UsageError


@dataclass
class AugmentConfig:
    """Augmentation of training images with labels of several levels."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale_jitter: tuple[float, float] | None = None
    """Range of scales, such as [0.5, 2.0]; the image is then cropped or padded to a square of --size. None disables
    it."""
    short_edges: list[int] = field(default_factory=list)
    """Lengths of the shorter side, one of which is drawn per image; empty: always --size."""
    photometric: bool = False
    """Random brightness, contrast, saturation and hue."""

    RULES: ClassVar[Rules] = {AT_LEAST_1: "short_edges", PROBABILITY: "flip"}


def train_pipeline(augment: AugmentConfig, size: int, longest: int) -> Pipeline:
    """Return the augmentation pipeline for training samples.

    Args:
        augment: Augmentation settings.
        size: Shorter side in pixels, or with scale jitter the side of the square.
        longest: Maximum of the longer side in pixels.

    Raises:
        UsageError: A setting is out of range.
    """
    jitter = augment.scale_jitter
    if jitter is not None and not 0 < jitter[0] <= jitter[1]:
        raise UsageError(f"augment.scale_jitter must be a range [low, high] with 0 < low <= high, not {list(jitter)}")
    if jitter is not None and augment.short_edges:
        raise UsageError(
            "augment.short_edges and augment.scale_jitter both set the image size; use only one of them "
            "(--augment.short-edges '[]' or --augment.scale-jitter null)"
        )
    if longest < size:
        raise UsageError(f"--longest {longest} must not be smaller than --size {size}")
    first: Step = ScaleJitter(size, jitter) if jitter is not None else Resize(augment.short_edges or [size], longest)
    steps: list[Step] = [first]
    if augment.flip:
        steps.append(Flip(augment.flip))
    if augment.photometric:
        steps.append(Photometric())
    return Pipeline([*steps, sanitize])
