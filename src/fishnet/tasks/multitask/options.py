"""Settings and prediction options of multitask networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fishnet.config import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, PROBABILITY, PyramidConfig, Rules, TrainConfig
from fishnet.data.levels import Level
from fishnet.data.multitask.transforms import AugmentConfig
from fishnet.tasks.base import Given, RecipeChoice
from fishnet.tasks.classification.options import ClassificationOptions
from fishnet.tasks.detection.options import DetectionOptions, DetectorChoice, HeadsConfig
from fishnet.tasks.multitask.panoptic import MergeOptions
from fishnet.tasks.segmentation.options import PixelConfig


@dataclass
class LossWeights:
    """Loss weight of each level if several are trained; with --weighting uncertainty, it multiplies the learned one."""

    image: float = 1.0
    """Weight of the image classification loss."""
    region: float = 1.0
    """Weight of the detection losses."""
    pixel: float = 0.5
    """Weight of the segmentation losses."""

    RULES: ClassVar[Rules] = {NOT_NEGATIVE: "image region pixel"}

    def of(self, level: str) -> float:
        """Return the weight of a level."""
        return float(getattr(self, level))


@dataclass
class MultitaskConfig(TrainConfig):
    """Settings of a run that trains a multitask network."""

    levels: list[Level] = field(default_factory=list)
    """Levels to train: image, region, pixel; empty: all levels that the data has labels for."""
    detector: DetectorChoice = "auto"
    """Detector of the region level; auto: mask_rcnn if the objects have outlines, else faster_rcnn."""
    longest: int = 1333
    """Maximum of the longer side of an image in pixels; --size is the shorter side."""
    label_smoothing: float = 0.0
    """Label smoothing at the image level: fraction of the target that is distributed over all classes."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """fixed: --loss-weights; uncertainty: weights are learned together with the network (arXiv 1705.07115)."""
    quota: float = 0.25
    """Minimum fraction of the images of every step that are labeled for each level; images of rare levels are
    repeated."""
    stuff: list[str] = field(default_factory=list)
    """Classes of label maps that are stuff in panoptic maps; empty: those that classes.json lists, or else those that
    match no object category by name or by position of their pixels."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)

    RULES: ClassVar[Rules] = {AT_LEAST_1: "longest", BELOW_1: "label_smoothing", PROBABILITY: "quota"}


@dataclass
class PanopticOptions:
    """Options of the evaluation: how instances and label maps are merged into panoptic maps."""

    panoptic: MergeOptions = field(default_factory=MergeOptions)


@dataclass
class MultitaskOptions:
    """Prediction options of a multitask network."""

    top: int = 5
    """Number of classes per image."""
    score: float = 0.5
    """Minimum score of an object."""
    max_detections: int = 100
    """Maximum number of objects per image."""
    panoptic: MergeOptions = field(default_factory=MergeOptions)

    def __post_init__(self) -> None:
        self.image, self.region = ClassificationOptions(self.top), DetectionOptions(self.score, self.max_detections)


def choose_recipe(settings: Given) -> RecipeChoice:
    """Return the default recipe of a run; it depends on whether weights are given."""
    if settings.get("weights"):
        return RecipeChoice("finetune", "weights are given")
    return RecipeChoice("scratch_small", "no weights are given")
