"""Settings and prediction options of detection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fishnet.config import AT_LEAST_1, POSITIVE, PROBABILITY, PyramidConfig, Rules, TrainConfig
from fishnet.data.detection.transforms import AugmentConfig
from fishnet.errors import UsageError
from fishnet.models.heads.detectors import Detector
from fishnet.tasks.base import Given, RecipeChoice

DetectorChoice = Literal["auto", Detector]
"""Detector; auto selects it from the data."""


@dataclass
class HeadsConfig:
    """Sizes of a detector's neck and heads; None uses the value of the preset."""

    preset: Literal["auto", "nano", "tiny", "small", "base"] = "auto"
    """Preset of all sizes; auto: chosen by the size of the backbone; base: as in torchvision."""
    width: int | None = None
    """Channels of the feature pyramid."""
    box_width: int | None = None
    """Units of the two layers of the box head."""
    mask_width: int | None = None
    """Channels of the mask head's convolutions."""
    mask_layers: int | None = None
    """Number of convolutions of the mask head before its upsampling."""
    keypoint_width: int | None = None
    """Channels of the keypoint head's convolutions."""
    tower_layers: int | None = None
    """Number of convolutions in the towers of RetinaNet and FCOS."""
    proposals: int | None = None
    """Proposals per image passed to the second stage; twice as many in training."""
    samples: int | None = None
    """Proposals per image that the second stage is trained on."""
    anchor_scale: float | None = None
    """Size of the anchors of a pyramid level, as a multiple of its stride."""
    aspect_ratios: list[float] | None = None
    """Aspect ratios (height / width) of the anchors."""
    score: float | None = None
    """Minimum score of a detection in evaluation."""
    nms: float | None = None
    """IoU threshold for non-maximum suppression."""
    detections: int | None = None
    """Maximum number of detections per image."""

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "width box_width mask_width mask_layers keypoint_width tower_layers proposals samples detections",
        POSITIVE: "anchor_scale aspect_ratios",
        PROBABILITY: "score nms",
    }


@dataclass
class DetectionConfig(TrainConfig):
    """Settings of a run that trains a detector."""

    detector: DetectorChoice = "auto"
    """Detector to build on the backbone; auto: mask_rcnn if the objects have outlines, else faster_rcnn."""
    longest: int = 1333
    """Maximum of the longer side of an image in pixels; --size is the shorter side."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)

    RULES: ClassVar[Rules] = {AT_LEAST_1: "longest"}


@dataclass
class DetectionOptions:
    """Prediction options of a detector."""

    score: float = 0.5
    """Minimum score of an object."""
    max_detections: int = 100
    """Maximum number of objects per image."""
    tile: int | None = None
    """Size in pixels of overlapping tiles that larger images are cut into; None keeps images whole."""
    overlap: float = 0.2
    """Fraction of a tile that overlaps with its neighbor."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise UsageError(f"--score must be between 0 and 1, not {self.score}")
        if self.max_detections < 1:
            raise UsageError(f"--max-detections must be at least 1, not {self.max_detections}")
        if self.tile is not None and self.tile < 32:
            raise UsageError(f"--tile must be at least 32 pixels, not {self.tile}")
        if not 0 <= self.overlap < 0.9:
            raise UsageError(f"--overlap must be at least 0 and below 0.9, not {self.overlap}")


def choose_recipe(settings: Given) -> RecipeChoice:
    """Return the default recipe of a run; it depends on whether weights are given."""
    if settings.get("weights"):
        return RecipeChoice("finetune", "weights are given")
    return RecipeChoice("scratch_small", "no weights are given")
