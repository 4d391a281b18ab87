"""Panoptic segmentation: merge of instances and label maps into one map, and panoptic quality.

The merge follows Panoptic FPN (Kirillov et al., arXiv 1901.02446, section 4.4) and Kirillov et al., arXiv 1801.00868:
overlaps between instances are resolved by score, overlaps of instances and stuff in favor of instances, and small stuff
regions are removed. Panoptic quality (PQ) is defined in arXiv 1801.00868, section 4; void and crowds are treated
as in panopticapi, COCO's evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fishnet.data.panoptic import VOID, Category, PanopticMap, Segment, described
from fishnet.data.run_lengths import RunLengths, decode
from fishnet.drawing.display import Display, Score, Section, Table
from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json
from fishnet.models.distributed import first_process, gathered


@dataclass(frozen=True)
class MergeOptions:
    """Thresholds for merging instances and label maps into panoptic maps.

    Attributes:
        score: Minimum score of an instance.
        overlap: An instance is removed if more than this fraction of its mask is covered by those of higher scores.
        stuff: Minimum area of a stuff region as a fraction of the image. The default corresponds to about
            the usual 64x64 pixels for COCO's images of 640x480.
    """

    score: float = 0.5
    overlap: float = 0.5
    stuff: float = 0.0125

    def __post_init__(self) -> None:
        for name, value in (("score", self.score), ("overlap", self.overlap), ("stuff", self.stuff)):
            if not 0 <= value <= 1:
                raise UsageError(f"--panoptic.{name} must be between 0 and 1, not {value}")


def merge(
    masks: Sequence[RunLengths] | Tensor | np.ndarray,
    scores: ArrayLike | Tensor,
    categories: Sequence[int],
    label_map: np.ndarray | Tensor,
    stuff: Mapping[int, int],
    options: MergeOptions | None = None,
) -> PanopticMap:
    """Return the panoptic map of an image.

    Args:
        masks: Instance masks of the size of the image: N run lengths, or (N, H, W).
        scores: Score of each instance (N,).
        categories: Category id of each instance.
        label_map: Class index of every pixel (H, W).
        stuff: Category id by class index of the label map. Pixels of all other classes, such as those of
            things, are void unless an instance covers them.
        options: Thresholds.

    Returns:
        Segments with ids from 1: the instances by descending score, then the stuff by class index.

    Raises:
        FishnetError: The masks have another size than the label map, or their number differs from that of the scores.
    """
    options = options or MergeOptions()
    labels = label_map.cpu().numpy() if isinstance(label_map, Tensor) else np.asarray(label_map)
    values = np.asarray(scores.cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64).reshape(-1)
    if not len(masks) == len(values) == len(categories):
        raise FishnetError(
            f"{len(values)} scores and {len(categories)} categories, but {len(masks)} masks: a panoptic map needs the "
            "mask of every instance, which a box detector does not predict; use a detector with masks"
        )
    ids = np.full(labels.shape, VOID, np.int32)
    found: list[Json] = []
    for place in np.argsort(-values, kind="stable").tolist():
        if not values[place] >= options.score:
            break
        mask = _mask(masks[place], labels.shape)
        free = mask & (ids == VOID)
        area, left = int(mask.sum()), int(free.sum())
        if left and area - left <= options.overlap * area:
            found.append({"id": len(found) + 1, "category_id": int(categories[place])})
            ids[free] = len(found)
    for index, category in sorted(stuff.items()):
        region = (labels == index) & (ids == VOID)
        if (area := int(region.sum())) and area >= options.stuff * labels.size:
            found.append({"id": len(found) + 1, "category_id": int(category)})
            ids[region] = len(found)
    return described(ids, found, {one["category_id"] for one in found})


def _mask(mask: RunLengths | Tensor | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask as bool (H, W)."""
    if isinstance(mask, Mapping):
        size = (int(mask["size"][0]), int(mask["size"][1]))
        found = decode([mask], size[0], size[1])[0].numpy() if size == shape else np.zeros(size)
    else:
        found = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if found.shape != shape:
        raise FishnetError(
            f"a mask has {found.shape[-1]}x{found.shape[0]} pixels, but the label map {shape[1]}x{shape[0]}; both must "
            "have the size of the image"
        )
    return found.astype(bool)


def true_map(
    masks: Sequence[RunLengths] | Tensor | np.ndarray,
    categories: Sequence[int],
    crowds: Sequence[bool],
    label_map: np.ndarray | Tensor,
    stuff: Mapping[int, int],
    ignore_index: int = 255,
) -> PanopticMap:
    """Return the panoptic map of annotations: instances, one segment per category of crowds, and stuff.

    Where instances overlap, the smaller one is in front. Pixels that the label map ignores are void, except in crowds,
    which label maps usually ignore too. Instances without visible pixels are excluded.

    Args:
        masks: Instance masks of the size of the image: N run lengths, or (N, H, W).
        categories: Category id of each instance.
        crowds: Whether each instance is a group of objects.
        label_map: Class index of every pixel (H, W), or `ignore_index`.
        stuff: Category id by class index of the label map; pixels of all other classes are void.
        ignore_index: Value of ignored pixels.
    """
    labels = label_map.cpu().numpy() if isinstance(label_map, Tensor) else np.asarray(label_map)
    arrays = [_mask(mask, labels.shape) for mask in masks]
    ids = np.full(labels.shape, VOID, np.int32)
    found: list[Json] = []
    for index, category in sorted(stuff.items()):
        if (region := labels == index).any():
            found.append({"id": len(found) + 1, "category_id": int(category)})
            ids[region] = len(found)
    for category in sorted({one for one, crowd in zip(categories, crowds, strict=True) if crowd}):
        own = [array for array, one, crowd in zip(arrays, categories, crowds, strict=True) if crowd and one == category]
        found.append({"id": len(found) + 1, "category_id": int(category), "iscrowd": 1})
        ids[np.logical_or.reduce(own)] = len(found)
    singles = [place for place, crowd in enumerate(crowds) if not crowd]
    for place in sorted(singles, key=lambda place: -int(arrays[place].sum())):
        found.append({"id": len(found) + 1, "category_id": int(categories[place])})
        ids[arrays[place] & (labels != ignore_index)] = len(found)
    visible = set(np.unique(ids).tolist())
    kept = [one for one in found if one["id"] in visible]
    return described(ids, kept, {one["category_id"] for one in kept})


PARTS = ("", "_things", "_stuff")
"""Suffixes of the metrics: all categories, things, stuff."""
METRICS = tuple(f"{name}{part}" for part in PARTS for name in ("pq", "sq", "rq"))


@dataclass
class PanopticEvaluation:
    """Result of an evaluation.

    `metrics` has panoptic quality (pq), segmentation quality (sq) and recognition quality (rq) between 0 and 1 as means
    over the categories with true or predicted segments (-1: none), also for things and stuff alone. `per_class` has a
    row per category, with the numbers of matches (tp), unmatched predictions (fp) and unmatched true segments (fn).
    """

    metrics: dict[str, float]
    per_class: list[Json] = field(default_factory=list)
    images: int = 0

    def to_dict(self) -> Json:
        """Return everything as plain values for JSON."""
        return {"images": self.images, "metrics": self.metrics, "per_class": self.per_class}


@dataclass
class _Sums:
    """Sums over images: `counts` int64 (categories, 3) of tp, fp, fn, `overlaps` the IoU of all matches."""

    counts: np.ndarray
    overlaps: np.ndarray
    images: int = 0


class PanopticEvaluator:
    """Match predicted with true segments, image by image, and compute panoptic quality.

    A true and a predicted segment of one category match if their IoU is above 0.5; pixels of the prediction that are
    void in the ground truth do not count in its union. Crowds are neither matched nor missed, and a prediction without
    a match is not an error if more than half of it is void or crowd of its category.

    Args:
        categories: Classes.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        if not categories:
            raise FishnetError("an evaluator needs at least one category")
        self.categories = list(categories)
        self._places = {category["id"]: place for place, category in enumerate(categories)}
        self._sums = self._zero()

    def _zero(self) -> _Sums:
        return _Sums(np.zeros((len(self.categories), 3), np.int64), np.zeros(len(self.categories)))

    def update(self, prediction: PanopticMap, truth: PanopticMap) -> None:
        """Add one image.

        Raises:
            FishnetError: The sizes differ, or a segment has an unknown category.
        """
        if prediction.ids.shape != truth.ids.shape:
            raise FishnetError(
                f"the panoptic prediction has {prediction.ids.shape[0]}x{prediction.ids.shape[1]} pixels (height x "
                f"width), but the ground truth {truth.ids.shape[0]}x{truth.ids.shape[1]}"
            )
        known = set(self._places)
        found = described(prediction.ids, cast(list[Json], prediction.segments), known).segments
        true = described(truth.ids, cast(list[Json], truth.segments), known).segments
        shared = _intersections(found, true, prediction.ids, truth.ids)
        matched_found, matched_true = self._match(found, true, shared)
        for place, segment in enumerate(true):
            if place not in matched_true and not segment["iscrowd"]:
                self._sums.counts[self._places[segment["category_id"]], 2] += 1
        for place, segment in enumerate(found):
            crowds = [row for row, one in enumerate(true) if one["iscrowd"] and _same(one, segment)]
            excused = int(shared[-1, place]) + int(shared[crowds, place].sum())
            if place not in matched_found and 2 * excused <= segment["area"]:
                self._sums.counts[self._places[segment["category_id"]], 1] += 1
        self._sums.images += 1

    def _match(self, found: list[Segment], true: list[Segment], shared: np.ndarray) -> tuple[set[int], set[int]]:
        """Count the matches; return the indices of matched predictions and of matched true segments."""
        matched_found, matched_true = set(), set()
        for row, column in zip(*np.nonzero(shared[:-1]), strict=True):
            one, other = true[row], found[column]
            if one["iscrowd"] or not _same(one, other):
                continue
            inter = int(shared[row, column])
            union = one["area"] + other["area"] - inter - int(shared[-1, column])
            if 2 * inter > union:  # an IoU above 0.5, which no other pair of either segment can have
                place = self._places[one["category_id"]]
                self._sums.counts[place, 0] += 1
                self._sums.overlaps[place] += inter / union
                matched_true.add(int(row))
                matched_found.add(int(column))
        return matched_found, matched_true

    def compute(self) -> PanopticEvaluation:
        """Return the metrics over all images and processes; all processes must call it.

        Raises:
            FishnetError: There were no images.
        """
        parts = gathered(self._sums)  # empty except in the main process
        return first_process(partial(self._compute, parts))

    def _compute(self, parts: Sequence[_Sums]) -> PanopticEvaluation:
        total = self._zero()
        for part in parts:
            total.counts += part.counts
            total.overlaps += part.overlaps
            total.images += part.images
        if not total.images:
            raise FishnetError("no image was evaluated: the split is empty, or every image in it was left out")
        rows = [
            _row(category, counts, overlap)
            for category, counts, overlap in zip(
                self.categories, total.counts.tolist(), total.overlaps.tolist(), strict=True
            )
        ]
        things = [bool(category["isthing"]) for category in self.categories]
        chosen = (
            rows,
            [row for row, thing in zip(rows, things, strict=True) if thing],
            [row for row, thing in zip(rows, things, strict=True) if not thing],
        )
        metrics = {
            f"{name}{part}": _mean(row[name] for row in own)
            for part, own in zip(PARTS, chosen, strict=True)
            for name in ("pq", "sq", "rq")
        }
        return PanopticEvaluation(metrics, rows, total.images)


def _same(one: Segment, other: Segment) -> bool:
    return one["category_id"] == other["category_id"]


def _intersections(
    found: Sequence[Segment], true: Sequence[Segment], found_ids: np.ndarray, true_ids: np.ndarray
) -> np.ndarray:
    """Return the intersections in pixels of true (rows; the last is void) and predicted segments (columns)."""
    columns, rows = _places(found, found_ids), _places(true, true_ids)
    width = len(found) + 1
    table = np.bincount(rows.ravel() * width + columns.ravel(), minlength=(len(true) + 1) * width)
    return table.reshape(len(true) + 1, width)[:, :-1]


def _places(segments: Sequence[Segment], ids: np.ndarray) -> np.ndarray:
    """Return the index of every pixel's segment in a list; void has the index after the last."""
    order = sorted(range(len(segments)), key=lambda place: segments[place]["id"])
    numbers = np.array([VOID, *(segments[place]["id"] for place in order)])
    places = np.array([len(segments), *order], dtype=np.int64)
    return places[np.searchsorted(numbers, ids)]


def _row(category: Category, counts: Sequence[int], overlap: float) -> Json:
    tp, fp, fn = counts
    known = tp + fp + fn > 0
    half = tp + 0.5 * fp + 0.5 * fn
    return {
        "class": category["name"],
        "thing": "thing" if category["isthing"] else "stuff",
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "pq": overlap / half if known else None,
        "sq": (overlap / tp if tp else 0.0) if known else None,
        "rq": tp / half if known else None,
    }


def _mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None; -1 if all are."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else -1.0


def _sections(evaluation: Mapping[str, object]) -> list[Section]:
    """Return the table per category."""
    rows = evaluation.get("per_class")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return []
    names = list(rows[0])
    head = [name.upper() if len(name) == 2 else name for name in names]
    note = (
        "Instances and label map merged, so that every pixel belongs to one segment. PQ is the product of SQ (mean IoU "
        "of matched segments) and RQ (F1 score of the matching)."
    )
    table = Table(head, names, [[row.get(name) for name in names] for row in rows])
    return [Section("Panoptic quality", table, note)]


DISPLAY = Display(
    scores={
        name: Score(f"{name[:2].upper()}{name[2:].replace('_', ' ')}", curve=name == "pq", detail="_" in name)
        for name in METRICS
    },
    primary=("pq",),
    fractions=frozenset(METRICS),
    sections=_sections,
)
"""Presentation of panoptic segmentation in reports."""
