"""Evaluation of semantic segmentation: IoU, accuracy and boundary IoU from pixel counts of a whole data set.

Every metric is a ratio of counts that are summed over all images and processes as integers, and divided in float64. IoU
(intersection over union, also known as the Jaccard index) of a class is TP / (TP + FP + FN) over all pixels of the
data set. A class that occurs neither in the ground truth nor in the predictions has no IoU and is excluded from the
means; a class that is predicted but has no true pixel has an IoU of 0, which is included. Ignored pixels of the ground
truth are excluded from all counts.

Boundary IoU (Cheng et al., arXiv 2103.16562) is the IoU of the parts of two masks that are near their contours: the
pixels of a mask at most `boundary_width` pixels from one outside of it, diagonal steps included. The exterior of the
image is outside every mask, as in the authors' implementation. It is computed per class on binary masks, which exclude
ignored pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fishnet.drawing.display import Display, Score, Section, Table
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.distributed import first_process, gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("miou", "boundary_iou", "pixel_accuracy", "mean_accuracy")
"""Metrics of an evaluation."""
CONFUSION_LIMIT = 2000
"""Maximum number of classes for a confusion matrix in the result."""
BAND = 0.02
"""Width of the boundary band as a fraction of the image diagonal, as in the paper."""


@dataclass
class SegmentationEvaluation:
    """Result of an evaluation.

    `metrics` are fractions between 0 and 1 (-1: no pixel to evaluate): `miou` and `boundary_iou` are means over the
    classes with true or predicted pixels, `pixel_accuracy` is the fraction of correct pixels, `mean_accuracy` the mean
    recall of the classes with true pixels. `per_class` has a row per class, None where a metric is undefined, and
    `images` in it is the number of images with true pixels of the class. `confusion` is the number of pixels
    `confusion[true, predicted]` (None for very many classes).
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


@dataclass
class _Counts:
    """Numbers of pixels, int64; C is the number of classes."""

    confusion: np.ndarray
    """(C, C + 1) by true and predicted class; the last column is for pixels without prediction."""
    bands: np.ndarray
    """(3, C): pixels in the boundary band of the ground truth, in that of the prediction, and in both."""
    occurrences: np.ndarray
    """(C,): images with true pixels of the class."""
    images: int = 0

    @classmethod
    def empty(cls, classes: int) -> _Counts:
        """Return counts of 0."""
        return cls(
            np.zeros((classes, classes + 1), np.int64), np.zeros((3, classes), np.int64), np.zeros(classes, np.int64)
        )

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(
            self.confusion + other.confusion,
            self.bands + other.bands,
            self.occurrences + other.occurrences,
            self.images + other.images,
        )


class SegmentationEvaluator:
    """Count pixels image by image, and compute the metrics.

    Args:
        classes: Class names by class index.
        ignore_index: Value of pixels in true label maps that are ignored. In a prediction it means that no class is
            predicted, which is an error wherever the ground truth has a class.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int = 255) -> None:
        if not classes:
            raise FishnetError("an evaluator needs at least one class")
        if 0 <= ignore_index < len(classes):
            raise FishnetError(
                f"ignore_index {ignore_index} is also the index of the class {classes[ignore_index]!r}; choose a value "
                f"that is not from 0 to {len(classes) - 1}"
            )
        self.classes, self.ignore_index = list(classes), ignore_index
        self._counts = _Counts.empty(len(classes))

    def update(self, prediction: ArrayLike | Tensor, truth: ArrayLike | Tensor) -> None:
        """Add one image.

        Args:
            prediction: Label map (H, W) of integers, in the size of the ground truth.
            truth: Label map (H, W) of integers, in its original size.

        Raises:
            FishnetError: The sizes differ, or a value is neither a class nor `ignore_index`.
        """
        true, found = self._indices(truth, "the ground truth"), self._indices(prediction, "the prediction")
        if true.shape != found.shape:
            raise FishnetError(
                f"the prediction has {found.shape[0]}x{found.shape[1]} pixels (height x width), but the label map "
                f"{true.shape[0]}x{true.shape[1]}; predictions are compared in the original size of the label map"
            )
        counts = self._counts
        classes = len(self.classes)
        found = np.where(true == classes, true, found)  # ignored pixels belong to no mask
        table = np.bincount(true.ravel() * np.intp(classes + 1) + found.ravel(), minlength=(classes + 1) ** 2)
        own = table.reshape(classes + 1, classes + 1)[:classes]
        counts.confusion += own
        counts.occurrences += own.any(1)
        counts.images += 1
        width = boundary_width(*true.shape)
        in_true, in_found = boundary_band(true, width), boundary_band(found, width)
        for row, labels in zip(
            counts.bands, (true[in_true], found[in_found], true[in_true & in_found & (true == found)]), strict=True
        ):
            row += np.bincount(labels, minlength=classes + 1)[:classes]

    def _indices(self, label_map: ArrayLike | Tensor, what: str) -> np.ndarray:
        """Return a label map as an array in which ignored pixels have the index after the last class."""
        values = label_map.cpu().numpy() if isinstance(label_map, Tensor) else np.asarray(label_map)
        if values.ndim != 2 or not values.size or values.dtype.kind not in "iu":
            raise FishnetError(
                f"{what} must be a label map of integers of shape (height, width), not {values.dtype} of shape "
                f"{values.shape}"
            )
        classes = len(self.classes)
        ignored = values == self.ignore_index
        outside = (values < 0) | (values >= classes)
        if (unknown := outside & ~ignored).any():
            listed = ", ".join(str(value) for value in np.unique(values[unknown])[:5].tolist())
            raise FishnetError(
                f"{what} has the value {listed}, which is neither a class (0 to {classes - 1}) nor ignore_index "
                f"({self.ignore_index})"
            )
        smallest = np.uint8 if classes <= np.iinfo(np.uint8).max else np.int32
        return np.where(ignored, smallest(classes), values.astype(smallest))

    def compute(self) -> SegmentationEvaluation:
        """Return the metrics over all images and processes; all processes must call it.

        Raises:
            FishnetError: There were no images.
        """
        parts = gathered(self._counts)  # empty except in the main process
        return first_process(partial(self._compute, parts))

    def _compute(self, parts: Sequence[_Counts]) -> SegmentationEvaluation:
        counts = sum(parts, _Counts.empty(len(self.classes)))
        if not counts.images:
            raise FishnetError("no image was evaluated: the split is empty, or every image in it was left out")
        rows = [self._row(index, counts) for index in range(len(self.classes))]
        confusion = counts.confusion[:, :-1]
        metrics = {
            "miou": _mean(row["iou"] for row in rows),
            "boundary_iou": _mean(row["boundary_iou"] for row in rows),
            "pixel_accuracy": _mean([_ratio(int(np.trace(confusion)), int(counts.confusion.sum()))]),
            "mean_accuracy": _mean(row["accuracy"] for row in rows),
        }
        kept = confusion if len(self.classes) <= CONFUSION_LIMIT else None
        return SegmentationEvaluation(metrics, rows, kept, counts.images)

    def _row(self, index: int, counts: _Counts) -> Json:
        hits = int(counts.confusion[index, index])
        true, found = int(counts.confusion[index].sum()), int(counts.confusion[:, index].sum())
        true_band, found_band, shared = (int(value) for value in counts.bands[:, index])
        return {
            "class": self.classes[index],
            "images": int(counts.occurrences[index]),
            "pixels": true,
            "iou": _ratio(hits, true + found - hits),
            "boundary_iou": _ratio(shared, true_band + found_band - shared),
            "accuracy": _ratio(hits, true),
            "precision": _ratio(hits, found),
        }


def boundary_width(height: int, width: int) -> int:
    """Return the width of the boundary band of an image in pixels."""
    return max(1, round(BAND * math.hypot(height, width)))


def boundary_band(label_map: np.ndarray, width: int) -> np.ndarray:
    """Return which pixels (H, W) are at most `width` pixels from one of another value or from the image's exterior.

    Distances are the larger of the horizontal and the vertical one. A pixel is not in the band if the square around it
    contains a single value: its rows are constant, and so is its middle column. Both are looked up in running sums of
    changes between neighbors, so that the time does not depend on `width` or on the number of classes.

    Args:
        label_map: Integers (H, W).
        width: Width of the band, at least 1.
    """
    height, length = label_map.shape
    rows = _changes(label_map, width)  # (H, W)
    columns = _changes(label_map.T, width).T
    # rows of the square: windows of the running sum of `rows` along the columns
    sums = np.zeros((height + 1, length), np.int32)
    np.cumsum(rows, axis=0, out=sums[1:])
    first, last = _window(height, width)
    return columns | (sums[last + 1] != sums[first])


def _changes(lines: np.ndarray, width: int) -> np.ndarray:
    """Return for each pixel (H, W) whether its row changes within `width` pixels; the ends of a row are changes."""
    height, length = lines.shape
    edges = np.ones((height, length + 1), bool)  # edge i lies between the pixels i - 1 and i
    np.not_equal(lines[:, 1:], lines[:, :-1], out=edges[:, 1:-1])
    sums = np.zeros((height, length + 2), np.int32)
    np.cumsum(edges, axis=1, out=sums[:, 1:])
    places = np.arange(length)
    first, last = np.maximum(places - width + 1, 0), np.minimum(places + width, length)
    return sums[:, last + 1] != sums[:, first]


def _window(length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last index within `width` of every index of a line."""
    places = np.arange(length)
    return np.maximum(places - width, 0), np.minimum(places + width, length - 1)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None; -1 if all are."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else -1.0


def draw_classes(rows: Sequence[Mapping[str, object]]) -> Figure:
    """Plot IoU and boundary IoU per class as bars, sorted by IoU; at most the 40 most frequent classes.

    Args:
        rows: `SegmentationEvaluation.per_class`.
    """
    from fishnet.drawing import style

    def value(row: Mapping[str, object], name: str) -> float:
        found = row.get(name)
        return float(found) if isinstance(found, int | float) else 0.0

    known = [row for row in rows if row.get("iou") is not None]
    frequent = sorted(known, key=lambda row: -value(row, "pixels"))[:_MOST_BARS]
    shown = sorted(frequent, key=lambda row: value(row, "iou"))
    with style.styled():
        figure = style.new_figure(6.4, max(2.4, 0.9 + 0.3 * len(shown)))
        axes = figure.add_subplot()
        places = np.arange(len(shown))
        for offset, name, label in ((0.2, "iou", "IoU"), (-0.2, "boundary_iou", "boundary IoU")):
            axes.barh(places + offset, [value(row, name) for row in shown], 0.36, label=label)
        for place, row in zip(places, shown, strict=True):
            axes.text(value(row, "iou") + 0.01, place + 0.2, f"{100 * value(row, 'iou'):.1f}", va="center", fontsize=7)
        names = [style.middle(str(row["class"]), 24) for row in shown]
        axes.set_yticks(places, names, parse_math=False)
        axes.set_xlim(0, 1.08)
        axes.grid(visible=False, axis="y")
        more = f", the {_MOST_BARS} most frequent of {len(known)}" if len(known) > _MOST_BARS else ""
        axes.set_title(f"IoU per class{more}" if shown else "IoU per class: no pixels to evaluate")
        if shown:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, borderaxespad=2.4)
    return figure


_MOST_BARS = 40


def _sections(evaluation: Mapping[str, object]) -> list[Section]:
    """Return the table and the bars per class, and the confusion matrix."""
    rows, matrix = evaluation.get("per_class"), evaluation.get("confusion")
    sections = []
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = list(rows[0])
        head = [_COLUMNS.get(name, name) for name in names]
        sections.append(Section("Classes", Table(head, names, [[row.get(name) for name in names] for row in rows])))
        note = "Intersection over union of the pixels of ground truth and prediction."
        sections.append(Section("IoU per class", draw_classes(rows), note))
    if isinstance(matrix, list) and matrix:
        note = "Rows are the true classes of pixels, columns the predicted classes."
        sections.append(Section("Confusion in percent of the true class", _confusion(matrix, rows), note))
    return sections


def draw_pixel_confusion(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix of pixels in percent of the true class, since pixel counts do not fit into its cells.

    Args:
        confusion: Number of pixels (classes, classes) by true and predicted class.
        classes: Class names.

    Raises:
        FishnetError: The matrix is not square with one row per class.
    """
    from fishnet.drawing.confusion import draw_confusion

    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=-1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    return draw_confusion(percent.round(1), classes)


def _confusion(matrix: Sequence[Sequence[float]], rows: object) -> Figure | str:
    try:
        return draw_pixel_confusion(matrix, [str(row["class"]) for row in (rows if isinstance(rows, list) else ())])
    except (FishnetError, ValueError, TypeError, KeyError) as error:
        return f"the confusion matrix cannot be drawn: {error}"


_COLUMNS = {"iou": "IoU", "boundary_iou": "boundary IoU"}
DISPLAY = Display(
    scores={
        "miou": Score("mIoU", curve=True),
        "boundary_iou": Score("boundary IoU", curve=True),
        "pixel_accuracy": Score("pixel accuracy", curve=True),
        "mean_accuracy": Score("mean class accuracy"),
    },
    primary=("miou",),
    fractions=frozenset({*METRICS, "iou", "accuracy", "precision"}),
    sections=_sections,
    predictions="Images of the validation split, each with its true and its predicted label map.",
)
"""Presentation of segmentation networks in reports."""
