"""Evaluation of detectors: the metrics of COCO for boxes, masks and keypoints, by faster-coco-eval.

https://cocodataset.org/#detection-eval. Average precision (AP) is averaged over ten IoU thresholds from 0.5 to 0.95
unless a single one is named; average recall (AR) is for a given number of detections per image. Metrics of a size or
class without objects in the split are -1, as in COCO.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fishnet.data.detection.coco import NONE, CocoFile
from fishnet.data.run_lengths import counts_text
from fishnet.drawing.display import Display, Score, Section, Table
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.distributed import first_process, gathered
from fishnet.tasks.detection.detections import Objects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[int, list[Json]]
"""Detections in COCO's results format, by the index of the image."""
KINDS = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}
"""Kinds of evaluation, with COCO's IoU types."""

BOX_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
KEYPOINT_FIGURES = (
    "ap", "ap50", "ap75", "ap_medium", "ap_large",
    "ar", "ar50", "ar75", "ar_medium", "ar_large",
)  # fmt: skip
"""COCO's metrics in COCO's order; the kind is prepended to each, as in box_ap50."""
_CURVES_AT = (0.5, 0.75)


def metric_names(kinds: Sequence[str]) -> list[str]:
    """Return the names of the metrics for box, mask or keypoint, in COCO's order."""
    return [f"{kind}_{name}" for kind in kinds for name in (KEYPOINT_FIGURES if kind == "keypoint" else BOX_FIGURES)]


@dataclass
class DetectionEvaluation:
    """Result of an evaluation.

    `metrics` are fractions between 0 and 1 (-1: no objects), `per_class` has a row per class, and `curves` has the
    precision at 101 recalls from 0 to 1, averaged over classes, per kind and IoU threshold.
    """

    metrics: dict[str, float]
    per_class: list[Json] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    images: int = 0
    detections: int = 0

    def to_dict(self) -> Json:
        """Return everything as plain values for JSON."""
        return {
            "images": self.images,
            "detections": self.detections,
            "metrics": self.metrics,
            "per_class": self.per_class,
            "curves": self.curves,
        }


class DetectionEvaluator:
    """Collect detections, image by image, and evaluate them against an annotation file.

    Args:
        file: Ground truth.
        kinds: Which of box, mask and keypoint to evaluate.
    """

    def __init__(self, file: CocoFile, kinds: Sequence[str] = ("box",)) -> None:
        if unknown := set(kinds) - set(KINDS):
            raise FishnetError(f"cannot evaluate {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
        self.file, self.kinds = file, tuple(kinds)
        self._found: Found = {}

    def add(self, image: int, found: Objects) -> None:
        """Add the detections of one image, in pixels of the original image; those of classes that were not annotated in
        it are excluded.

        Args:
            image: Index of the image in the annotation file.
            found: Objects, with masks and keypoints if these are evaluated.

        Raises:
            FishnetError: A box, score or keypoint is not finite.
        """
        self._found[image] = coco_results(self.file, image, self._known(image, found))

    def _known(self, image: int, found: Objects) -> Objects:
        listed = self.file.annotated.get(image)
        if listed is None:
            return found
        places = [place for place, label in enumerate(found["labels"].tolist()) if label in listed]
        kept: Json = {name: value[places] for name, value in found.items() if isinstance(value, Tensor)}
        if "masks" in found:
            kept["masks"] = [found["masks"][place] for place in places]
        return cast(Objects, kept)

    def results(self) -> list[Json]:
        """Return the detections of this process in COCO's results format."""
        return [entry for image in sorted(self._found) for entry in self._found[image]]

    def compute(self) -> DetectionEvaluation:
        """Return the metrics over all images and processes; all processes must call it.

        Raises:
            FishnetError: There were no images.
        """
        parts = gathered(self._found)  # empty except in the main process
        return first_process(partial(self._compute, {image: one for part in parts for image, one in part.items()}))

    def _compute(self, found: Found) -> DetectionEvaluation:
        if not found:
            raise FishnetError("no image was evaluated: the split is empty, or every image in it was left out")
        return evaluate_detections(self.file, found, self.kinds)


def coco_results(file: CocoFile, image: int, found: Objects) -> list[Json]:
    """Return detections of one image as entries of COCO's results format."""
    boxes = _rounded(found["boxes"]).reshape(-1, 4)
    scores = _rounded(found["scores"])
    points = _rounded(found["keypoints"]) if "keypoints" in found else np.zeros(0)
    if not all(np.isfinite(values).all() for values in (boxes, scores, points)):
        raise FishnetError("the model gave NaN or infinite boxes, scores or keypoints: its weights are damaged")
    boxes[:, 2:] -= boxes[:, :2]
    categories = file.category_ids[np.asarray(found["labels"], dtype=np.int64)]
    entries: list[Json] = []
    for index, (box, score, category) in enumerate(
        zip(boxes.tolist(), scores.tolist(), categories.tolist(), strict=True)
    ):
        entry: Json = {
            "image_id": int(file.image_ids[image]),
            "category_id": category,
            "bbox": box,
            "score": score,
        }
        if "masks" in found:
            mask = found["masks"][index]
            entry["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": counts_text(mask)}
        if "keypoints" in found:
            entry["keypoints"] = points[index].reshape(-1).tolist()
        entries.append(entry)
    return entries


def _rounded(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def evaluate_detections(file: CocoFile, found: Found, kinds: Iterable[str] = ("box",)) -> DetectionEvaluation:
    """Return COCO's metrics for detections by image index; images without an entry are excluded."""
    images = sorted(found)
    entries = [entry for image in images for entry in found[image]]
    evaluation = DetectionEvaluation({}, images=len(images), detections=len(entries))
    counts = file.class_counts()
    evaluation.per_class = [
        {"class": name, "objects": int(count)} for name, count in zip(file.classes, counts, strict=True)
    ]
    for kind in kinds:
        _evaluate_kind(file, images, entries, kind, evaluation)
    return evaluation


def _evaluate_kind(
    file: CocoFile, images: list[int], entries: list[Json], kind: str, evaluation: DetectionEvaluation
) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO()
    truth.dataset = ground_truth(file, images, kind)
    truth.createIndex()
    names = {"mask": ("segmentation",), "box": ("bbox",), "keypoint": ("keypoints",)}[kind]
    wanted = ("image_id", "category_id", "score", *names)
    results = truth.loadRes([{name: entry[name] for name in wanted} for entry in entries])
    options = {"kpt_oks_sigmas": keypoint_sigmas(len(file.keypoint_names))} if kind == "keypoint" else {}
    coco = COCOeval_faster(truth, results, KINDS[kind], print_function=_say_nothing, extra_calc=False, **options)
    coco.params.imgIds = [int(file.image_ids[image]) for image in images]
    coco.evaluate()
    coco.accumulate()
    coco.summarize()
    figures = KEYPOINT_FIGURES if kind == "keypoint" else BOX_FIGURES
    values = list(coco.stats)[: len(figures)]
    evaluation.metrics |= {f"{kind}_{name}": float(value) for name, value in zip(figures, values, strict=True)}
    precision = np.asarray(coco.eval["precision"])[..., 0, -1]  # (IoU thresholds, recalls, classes), all sizes
    overlaps, categories = np.asarray(coco.params.iouThrs), list(coco.params.catIds)
    for row, identity in zip(evaluation.per_class, file.category_ids.tolist(), strict=True):
        if identity in categories:
            own = precision[:, :, categories.index(identity)]
            row[f"{kind}_ap"] = _mean(own)
            row[f"{kind}_ap50"] = _mean(own[np.isclose(overlaps, 0.5)])
    evaluation.curves[kind] = {}
    for overlap in _CURVES_AT:
        at = precision[np.isclose(overlaps, overlap)][0]
        known = at[:, (at > -1).any(0)]
        evaluation.curves[kind][f"{overlap:g}"] = known.mean(1).tolist() if known.size else []


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def ground_truth(file: CocoFile, images: Sequence[int], kind: str) -> Json:
    """Return the ground truth of some images as a COCO document, crowds included; objects are numbered from 1.

    For masks, objects without an outline become crowds, so that detections in their boxes are ignored.

    COCO's evaluation marks an unmatched detection by 0, so an object with the id 0 would never count as found.
    """
    annotations: list[Json] = []
    for image in images:
        for index in file.objects(image).tolist():
            entry: Json = {
                "id": len(annotations) + 1,
                "image_id": int(file.image_ids[image]),
                "category_id": int(file.category_ids[file.class_of[index]]),
                "bbox": file.boxes[index].tolist(),
                "area": float(file.areas[index]),
                "iscrowd": int(file.crowd[index]),
            }
            if kind == "mask":
                entry["segmentation"] = file.mask(index)
                # a detection in the box of an object without an outline is ignored, as in a crowd
                entry["iscrowd"] |= int(file.outlines.kind[index] == NONE)
            if kind == "keypoint":
                assert file.keypoints is not None
                points = file.keypoints[index]
                entry["keypoints"] = points.reshape(-1).tolist()
                entry["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(entry)
    sizes = zip(file.image_ids.tolist(), file.widths.tolist(), file.heights.tolist(), strict=True)
    stated = [{"id": number, "width": width, "height": height} for number, width, height in sizes]
    return {
        "images": [stated[image] for image in images],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in zip(file.category_ids.tolist(), file.classes, strict=True)
        ],
    }


_PERSON_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip


def keypoint_sigmas(count: int) -> np.ndarray:
    """Return the standard deviation of each keypoint for OKS: COCO's values for its 17 keypoints, else their mean."""
    if count == len(_PERSON_SIGMAS):
        return np.array(_PERSON_SIGMAS)
    return np.full(count, float(np.mean(_PERSON_SIGMAS)))


def _say_nothing(*_: object, **__: object) -> None:
    """Discard the output of the library."""


def _sections(evaluation: Mapping[str, object]) -> list[Section]:
    """Return COCO's metrics, precision over recall, and the table per class."""
    metrics, curves, rows = (evaluation.get(name) for name in ("metrics", "curves", "per_class"))
    sections = []
    if isinstance(metrics, dict) and (table := _figures_table(metrics)).rows:
        sections.append(Section("COCO's metrics", table))
    if curves and isinstance(metrics, dict):
        note = (
            "Precision over recall for decreasing scores, at several IoU thresholds; the area under a curve is the AP."
        )
        sections.append(Section("Precision and recall", _precision_recall(curves, metrics), note))
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = list(rows[0])
        sections.append(Section("Classes", Table(names, names, [[row.get(name) for name in names] for row in rows])))
    return sections


def _figures_table(metrics: Mapping[str, object]) -> Table:
    """Return a row per kind with COCO's metrics; a dash for metrics without objects."""
    rows: dict[str, Json] = {}
    for name, value in metrics.items():
        kind, _, figure = name.partition("_")
        if kind in KINDS and figure:
            rows.setdefault(kind, {})[figure] = None if value == -1 else value
    names = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    head = [f"{name[:2].upper()}{name[2:].replace('_', ' ')}" for name in names]
    body = [[kind, *(row.get(name) for name in names)] for kind, row in rows.items()]
    return Table(["", *head], ["", *names], body)


def _precision_recall(curves: Any, metrics: Mapping[str, float]) -> Figure | str:
    from fishnet.drawing.precision_recall import draw_precision_recall

    try:
        return draw_precision_recall(curves, metrics)
    except (ValueError, TypeError, AttributeError) as error:
        return f"precision and recall cannot be drawn: {error}"


_CURVES = ("ap", "ap50")
DISPLAY = Display(
    scores={
        **{f"{kind}_{name}": Score(f"{kind} {name.upper()}", curve=True) for kind in KINDS for name in _CURVES},
        **{
            f"{kind}_{name}": Score(f"{kind} {name}", detail=True)
            for kind in KINDS
            for name in dict.fromkeys(BOX_FIGURES + KEYPOINT_FIGURES)
            if name not in _CURVES
        },
    },
    primary=("mask_ap", "box_ap"),
    fractions=frozenset(
        prefix + name for name in BOX_FIGURES + KEYPOINT_FIGURES for prefix in ("", *(f"{kind}_" for kind in KINDS))
    ),
    sections=_sections,
    predictions="Images of the validation split: the image, its annotations (truth), and the detections of the best "
    "epoch with their scores in percent (prediction).",
)
"""Presentation of detectors in reports."""
