"""Evaluation of classifiers: top-k accuracy, calibration, metrics per class, mean average precision.

All sums are states of torchmetrics, so that an evaluator works in one process or several (its states are gathered in
`compute`) and on any device (it is an `nn.Module` without parameters).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
)

from fishnet.drawing.display import Display, Score, Section, Table
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.tasks.base import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP_K = 5
CONFUSION_LIMIT = 2000
"""Maximum number of classes for a confusion matrix, whose size grows quadratically."""


def metric_names(classes: int, multi_label: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics of a classifier.

    Args:
        classes: Number of classes; top-5 accuracy is left out up to five, where it is always 1.
        multi_label: Whether an image may have any number of classes.
    """
    if multi_label:
        return "map", "f1", "loss"
    return "top1", *(("top5",) if classes > TOP_K else ()), "macro_accuracy", "ece", "loss"


@dataclass
class Evaluation:
    """Result of an evaluation.

    `metrics` are fractions between 0 and 1 (and `loss`, in nats), `per_class` has one row per class in the order of the
    classes (None for undefined metrics, such as the recall of a class without images), and `confusion[true, predicted]`
    is a number of images (None for multi-label data and for very many classes).
    """

    metrics: dict[str, float]
    per_class: list[Json] = field(default_factory=list)
    confusion: np.ndarray | None = None
    images: int = 0

    def to_dict(self) -> Json:
        """Return everything as plain values for JSON."""
        return {
            "images": self.images,
            "metrics": self.metrics,
            "per_class": self.per_class,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }


class _ClassCounts(Metric):
    """Images, predictions and hits of every class, as exact integers, and `topk_hits` of all images."""

    full_state_update = False
    images: Tensor
    predicted: Tensor
    correct: Tensor
    topk_hits: Tensor
    seen: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("images", "predicted", "correct"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("topk_hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, truth: Tensor, guess: Tensor, topk_hits: Tensor) -> None:
        """Add a batch: `truth` and `guess` are 0 or 1 of shape (N, classes), `topk_hits` is a count."""
        self.images += truth.sum(0)
        self.predicted += guess.sum(0)
        self.correct += (truth * guess).sum(0)
        self.topk_hits += topk_hits
        self.seen += len(truth)

    def compute(self) -> dict[str, np.ndarray]:
        """Return the counts summed over all processes."""
        names = ("images", "predicted", "correct", "topk_hits", "seen")
        return {name: getattr(self, name).cpu().numpy().copy() for name in names}


class ClassificationEvaluator(nn.Module):
    """Evaluate logits against targets, batch by batch.

    Single-label metrics: top1, top5 (with more than five classes), macro_accuracy (mean recall over classes with
    images), ece (expected calibration error, 15 bins) and loss (cross entropy). Multi-label metrics: map (mean average
    precision) and f1 (at a threshold of 0.5), both averaged over classes with images, and loss (binary cross
    entropy).
    """

    def __init__(self, classes: Sequence[str], multi_label: bool = False, device: str | torch.device = "cpu") -> None:
        super().__init__()
        if not classes:
            raise FishnetError("an evaluator needs at least one class")
        self.classes = list(classes)
        self.multi_label = multi_label
        self.counts = _ClassCounts(len(classes))
        self.loss = MeanMetric(nan_strategy="disable")
        # torchmetrics needs at least two classes: an empty second one is added, which compute() removes
        width = max(2, len(classes))
        self.ece = None if multi_label else MulticlassCalibrationError(width, n_bins=15, validate_args=False)
        self.precision = None
        self.matrix = None
        if multi_label:
            self.precision = MultilabelAveragePrecision(width, average="none", validate_args=False)
        elif len(classes) <= CONFUSION_LIMIT:
            self.matrix = MulticlassConfusionMatrix(width, validate_args=False)
        self.to(device)

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (N, classes), any float type, before softmax or sigmoid.
            targets: (N,) class indices, or (N, classes) of 0 and 1 for multi-label.

        Raises:
            FishnetError: Shapes do not match, a target is not a class, or a logit is not finite.
        """
        self._check(logits, targets)
        if len(logits):
            self._add(logits.float(), targets)

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        width = len(self.classes)
        wanted = (len(logits), width) if self.multi_label else (len(logits),)
        if logits.ndim != 2 or logits.shape[1] != width:
            raise FishnetError(
                f"the model has outputs of shape {tuple(logits.shape)}, but the data has {width} classes"
            )
        if tuple(targets.shape) != wanted:
            raise FishnetError(f"targets have shape {tuple(targets.shape)}, but {wanted} is expected")
        if not torch.isfinite(logits).all():
            raise FishnetError(
                "the model gave NaN or infinite outputs: its weights are damaged or its training diverged "
                "(train with a lower --lr, with --optim.clip_grad or in fp32)"
            )
        if len(targets) and not self.multi_label and not (0 <= int(targets.min()) <= int(targets.max()) < width):
            raise FishnetError(f"a target is outside the {width} classes 0..{width - 1}")

    def _add(self, logits: Tensor, targets: Tensor) -> None:
        if self.multi_label:
            self._add_multi(logits, targets)
        else:
            self._add_single(logits, targets)

    def _add_single(self, logits: Tensor, targets: Tensor) -> None:
        width = len(self.classes)
        guess = logits.argmax(1)
        truth_rows = functional.one_hot(targets, width)
        hits = (logits.topk(min(TOP_K, width), dim=1).indices == targets[:, None]).sum()
        self.counts.update(truth_rows, functional.one_hot(guess, width), hits)
        self.loss.update(functional.cross_entropy(logits, targets, reduction="none"))
        # as probabilities: torchmetrics would otherwise guess from the range of a batch whether these are logits
        assert self.ece is not None
        self.ece.update(_two_columns(logits.softmax(1)), targets)
        if self.matrix is not None:
            self.matrix.update(guess, targets)

    def _add_multi(self, logits: Tensor, targets: Tensor) -> None:
        truth = targets.long()
        guess = (logits > 0).long()
        self.counts.update(truth, guess, (truth * guess).sum())
        loss = functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        self.loss.update(loss.mean(1))
        assert self.precision is not None
        self.precision.update(_two_columns(_ranks(logits)), _two_columns(truth))

    def compute(self) -> Evaluation:
        """Return the result over all batches and processes; all processes must call it.

        Raises:
            FishnetError: There were no images.
        """
        self._join_in()
        counts = self.counts.compute()
        images = int(counts["seen"])
        if images == 0:
            raise FishnetError("no image was evaluated: the split is empty, or every image in it was left out")
        rows = [self._row(index, counts) for index in range(len(self.classes))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about classes without images, which are excluded below
            metrics = self._multi_metrics(rows) if self.multi_label else self._single_metrics(rows, counts, images)
        metrics["loss"] = float(self.loss.compute())
        confusion = None
        if self.matrix is not None:
            size = len(self.classes)
            confusion = self.matrix.compute().cpu().numpy()[:size, :size]
        return Evaluation(metrics, rows, confusion, images)

    def _join_in(self) -> None:
        """Initialize the states of a process without batches with the right shapes, which gathering needs."""
        if self.counts.update_count == 0:
            device = self.counts.device
            width = len(self.classes)
            shape = (0, width) if self.multi_label else (0,)
            self._add(torch.zeros(0, width, device=device), torch.zeros(shape, dtype=torch.int64, device=device))

    def _row(self, index: int, counts: dict[str, np.ndarray]) -> Json:
        images, predicted, correct = (int(counts[name][index]) for name in ("images", "predicted", "correct"))
        return {
            "class": self.classes[index],
            "images": images,
            "predicted": predicted,
            "correct": correct,
            "recall": correct / images if images else None,
            "precision": correct / predicted if predicted else None,
            "f1": 2 * correct / (images + predicted) if images else None,
        }

    def _single_metrics(self, rows: list[Json], counts: dict[str, np.ndarray], n: int) -> dict[str, float]:
        assert self.ece is not None
        known = {
            "top1": int(counts["correct"].sum()) / n,
            "top5": int(counts["topk_hits"]) / n,
            "macro_accuracy": _mean(row["recall"] for row in rows),
            "ece": float(self.ece.compute()),
        }
        return {name: known[name] for name in metric_names(len(self.classes)) if name in known}

    def _multi_metrics(self, rows: list[Json]) -> dict[str, float]:
        assert self.precision is not None
        values = self.precision.compute().tolist()
        for row, value in zip(rows, values, strict=False):
            row["ap"] = value if row["images"] else None
        return {"map": _mean(row["ap"] for row in rows), "f1": _mean(row["f1"] for row in rows)}


def _mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None; 0 if all are."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else 0.0


def _ranks(logits: Tensor) -> Tensor:
    """Map float32 logits to float64 values in 0..1 of the same order, which are equal only if the logits are.

    Average precision depends only on the order, which a sigmoid in float32 does not preserve: it is 1 for all logits
    above 17. The bits of a float, read as an integer, increase with its magnitude, and float64 represents all of them.
    """
    logits = logits + 0.0  # -0 becomes 0
    bits = logits.view(torch.int32).long()
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return (order.double() + 2**31) / 2**32


def _two_columns(rows: Tensor) -> Tensor:
    return rows if rows.shape[1] > 1 else functional.pad(rows, (0, 1))


def good_items(batch: Batch) -> Batch:
    """Remove the replacements of unreadable images from a batch, so that no image is evaluated twice."""
    bad = batch.get("bad")
    if not bad or not any(bad):
        return batch
    keep = torch.tensor([not path for path in bad])
    return {
        name: value[keep] if isinstance(value, Tensor) else [v for v, k in zip(value, keep.tolist(), strict=True) if k]
        for name, value in batch.items()
    }


def _sections(evaluation: Mapping[str, object]) -> list[Section]:
    """Return the table per class and the confusion matrix."""
    rows, matrix = evaluation.get("per_class"), evaluation.get("confusion")
    sections = []
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = list(rows[0])
        head = [_COLUMNS.get(name, name) for name in names]
        sections.append(Section("Classes", Table(head, names, [[row.get(name) for name in names] for row in rows])))
    if matrix:
        sections.append(Section("Confusion", _confusion(matrix, rows), CONFUSION))
    return sections


def _confusion(matrix: Any, rows: Any) -> Figure | str:
    from fishnet.drawing.confusion import draw_confusion

    try:
        return draw_confusion(matrix, [str(row["class"]) for row in rows or ()])
    except (FishnetError, ValueError, TypeError, KeyError) as error:
        return f"the confusion matrix cannot be drawn: {error}"


CONFUSION = "Rows are true classes, columns predicted classes; correct predictions are on the diagonal."
_COLUMNS = {"f1": "F1", "ap": "AP"}
DISPLAY = Display(
    scores={
        "top1": Score("top-1", curve=True),
        "top5": Score("top-5", curve=True),
        "map": Score("mAP", curve=True),
        "f1": Score("F1", curve=True),
        "macro_accuracy": Score("mean class accuracy"),
        "ece": Score("calibration error", smaller_is_better=True),
        "loss": Score("loss", smaller_is_better=True),
    },
    primary=("top1", "map"),
    fractions=frozenset({"top1", "top5", "map", "f1", "macro_accuracy", "ece", "recall", "precision", "ap"}),
    sections=_sections,
    predictions="Images of the validation split with the most probable classes; a green border marks those that are "
    "right.",
)
"""Presentation of classifiers in reports."""
