"""Evaluation of multitask networks: the evaluators of the single tasks, and panoptic quality."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fishnet.data.multitask.dataset import MultitaskDataset
from fishnet.drawing.display import Score, combine, unique_names
from fishnet.files import Json
from fishnet.models.distributed import first_process, gathered
from fishnet.tasks.classification.evaluator import DISPLAY as IMAGE
from fishnet.tasks.classification.evaluator import ClassificationEvaluator
from fishnet.tasks.classification.evaluator import Evaluation as ClassificationEvaluation
from fishnet.tasks.detection.evaluator import DISPLAY as REGION
from fishnet.tasks.detection.evaluator import DetectionEvaluation, DetectionEvaluator
from fishnet.tasks.multitask.panoptic import DISPLAY as PANOPTIC
from fishnet.tasks.multitask.panoptic import PanopticEvaluation, PanopticEvaluator
from fishnet.tasks.segmentation.evaluator import DISPLAY as PIXEL
from fishnet.tasks.segmentation.evaluator import SegmentationEvaluation, SegmentationEvaluator

PARTS = {"image": IMAGE, "region": REGION, "pixel": PIXEL, "panoptic": PANOPTIC}
"""Presentation of each part of an evaluation in reports."""
MEAN = "mean_of_levels"
"""Metric that selects the best epoch: the mean of the primary metrics of the levels, without panoptic quality."""


_COMBINED = combine(PARTS)
DISPLAY = replace(
    _COMBINED,
    scores={MEAN: Score("mean of levels", curve=True), **_COMBINED.scores},
    primary=(MEAN,),
    fractions=_COMBINED.fractions | {MEAN},
    predictions="Images of the validation split, prediction beside ground truth. Each shows the objects with boxes, "
    "outlines and scores, the label map, and if there are both, the panoptic map, in which every object has a number; "
    "the class of the image is printed below.",
)
"""Presentation of multitask networks in reports."""


@dataclass
class MultitaskEvaluation:
    """Result of an evaluation: `metrics` of all levels, and the evaluation of each level that the network has."""

    metrics: dict[str, float]
    images: int = 0
    image: ClassificationEvaluation | None = None
    region: DetectionEvaluation | None = None
    pixel: SegmentationEvaluation | None = None
    panoptic: PanopticEvaluation | None = None

    def to_dict(self) -> Json:
        """Return the evaluation as JSON values; those of the levels are under `heads`."""
        parts = (self.image, self.region, self.pixel, self.panoptic)
        heads = {name: part.to_dict() for name, part in zip(PARTS, parts, strict=True) if part is not None}
        return {"images": self.images, "metrics": self.metrics, "heads": heads}


@dataclass
class MultitaskEvaluator:
    """Evaluators of the levels that a network has, and of panoptic maps."""

    dataset: MultitaskDataset
    """Split to evaluate."""
    image: ClassificationEvaluator | None = None
    region: DetectionEvaluator | None = None
    pixel: SegmentationEvaluator | None = None
    panoptic: PanopticEvaluator | None = None
    seen: int = 0
    """Number of images that this process has evaluated."""

    def compute(self) -> MultitaskEvaluation:
        """Return the metrics of all levels over all processes; all processes must call it."""
        counts = gathered(self.seen)  # empty except in the main process
        found = MultitaskEvaluation({}, first_process(lambda: sum(counts)))
        found.image = None if self.image is None else self.image.compute()
        found.region = None if self.region is None else self.region.compute()
        found.pixel = None if self.pixel is None else self.pixel.compute()
        found.panoptic = None if self.panoptic is None else self.panoptic.compute()
        parts = (found.image, found.region, found.pixel, found.panoptic)
        metrics = {name: part.metrics for name, part in zip(PARTS, parts, strict=True) if part is not None}
        names = metric_names(metrics)
        every = {names[part, name]: value for part, own in metrics.items() for name, value in own.items()}
        known = [value for name in averaged(every) if (value := every[name]) >= 0]
        found.metrics = {MEAN: math.fsum(known) / len(known) if known else -1.0, **every}
        return found


def averaged(metrics: Collection[str]) -> list[str]:
    """Return the names of the metrics whose mean selects the best epoch: the primary metric of each level.

    Args:
        metrics: Names of the metrics of an evaluation.
    """
    levels = [display for name, display in PARTS.items() if name != "panoptic"]
    found = [next((name for name in display.primary if name in metrics), None) for display in levels]
    return [name for name in found if name is not None]


def metric_names(metrics: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], str]:
    """Return the names of the metrics of all parts in one evaluation, by (part, name)."""
    return unique_names(metrics, PARTS)
