"""Decoders of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from .boxes import anchors_at, best, clipped, from_distances, large, moved, suppressed
from .head import Arrays, Graph, Head, Json, Thresholds, check_finite, sigmoid, softmax
from .masks import keypoints, pasted, run_lengths
from .pooling import Pooling
from .prepare import Size

PIXEL_CENTER = 0.5
"""COCO gives keypoints as pixel indices, networks as distances from the upper left corner."""
R_CNN_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Divisors of the box deltas of the second stage."""
_SMALLEST = 1e-2


class Detections(TypedDict):
    """Objects in one image, sorted by score; boxes and keypoints in pixels of the network's input."""

    boxes: np.ndarray
    """float32 (N, 4): x1 y1 x2 y2."""
    labels: np.ndarray
    """int64 (N,): class indices from 0, without background."""
    scores: np.ndarray
    """float32 (N,)."""
    masks: NotRequired[np.ndarray]
    """float32 (N, 1, 28, 28): mask probabilities inside each box."""
    keypoints: NotRequired[np.ndarray]
    """float32 (N, K, 3): x, y, visibility (always 1)."""
    keypoints_scores: NotRequired[np.ndarray]
    """float32 (N, K)."""


class Detector(Head[Detections]):
    """Decoder of a detector."""

    score: float
    """Score threshold of detections."""
    detections: int
    """Maximum number of detections per image."""

    def entry(self, answer: Detections, seen: Size, size: Size, thresholds: Thresholds) -> Json:
        """Return the objects in pixels of the image: boxes, run lengths of masks, keypoints."""
        check_finite(answer["scores"])
        down, across = np.float32(size[0] / seen[0]), np.float32(size[1] / seen[1])
        boxes = answer["boxes"] * np.array([across, down, across, down], np.float32)
        kept = np.flatnonzero(answer["scores"] >= thresholds.score)[: thresholds.max_detections]
        entries = []
        for place in kept:
            index = int(answer["labels"][place])
            one: Json = {
                "label": self.classes[index],
                "index": index,
                "score": round(float(answer["scores"][place]), 6),
                "box": [round(float(value), 2) for value in boxes[place]],
            }
            if "masks" in answer:
                mask = pasted(answer["masks"][place, 0], boxes[place], *size)
                one["mask"] = {"size": [*size], "counts": run_lengths(mask)}
            if "keypoints" in answer:
                points = answer["keypoints"][place] * np.array([across, down, 1], np.float32)
                points = points - np.array([PIXEL_CENTER, PIXEL_CENTER, 0], np.float32)
                one["keypoints"] = [[round(float(value), 2) for value in point] for point in points]
            entries.append(one)
        return {"predictions": entries}


@dataclass(frozen=True)
class OneStageHead(Detector):
    """RetinaNet (arXiv 1708.02002) and FCOS (1904.01355): class and box at every position of every level."""

    kind: str
    """retinanet or fcos."""
    classes: Sequence[str]
    anchors: Sequence[Sequence[Sequence[float]]]
    """Anchors (A, 4) around the upper left pixel of each level."""
    strides: Sequence[int]
    """Pixels of the image per pixel of each level."""
    score: float
    """Score threshold of detections."""
    nms: float
    """IoU threshold for non-maximum suppression."""
    detections: int
    """Maximum number of detections per image."""
    candidates: int
    """Maximum number of candidates per level before non-maximum suppression."""

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[Detections]:
        """Return the detections of each image."""
        widths = [-(-canvas[1] // stride) for stride in self.strides]
        heights = [-(-canvas[0] // stride) for stride in self.strides]
        cells = [np.array(level, np.float32) for level in self.anchors]
        counts = [h * w * len(cell) for h, w, cell in zip(heights, widths, cells, strict=True)]
        starts = np.cumsum([0, *counts])
        scores = sigmoid(raw["cls_logits"])
        if self.kind == "fcos":
            scores = np.sqrt(scores * sigmoid(raw["bbox_ctrness"]))
        answers: list[Detections] = []
        for score, deltas, size in zip(scores, raw["bbox_regression"], sizes, strict=True):
            parts = []
            for level, cell in enumerate(cells):
                own = slice(starts[level], starts[level + 1])
                parts.append(self._candidates(score[own], deltas[own], cell, widths[level], self.strides[level], size))
            boxes, values, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            answers.append(_selected(boxes, values, labels, self.nms, self.detections))
        return answers

    def _candidates(
        self, scores: np.ndarray, deltas: np.ndarray, cells: np.ndarray, width: int, stride: int, size: Size
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes, scores and labels of the best candidates of a level."""
        place, label = np.nonzero(scores > np.float32(self.score))
        values = scores[place, label]
        chosen = best(values, self.candidates)
        place, label = place[chosen], label[chosen]
        anchors = anchors_at(place, cells, width, stride)
        if self.kind == "fcos":
            boxes = from_distances(deltas[place], anchors)
        else:
            boxes = moved(deltas[place], anchors, (1.0, 1.0, 1.0, 1.0))
        return clipped(boxes, *size), values[chosen], label


@dataclass(frozen=True)
class TwoStageHead(Detector):
    """Faster, Mask and Keypoint R-CNN, and their cascades (arXiv 1506.01497, 1703.06870, 1712.00726)."""

    classes: Sequence[str]
    anchors: Sequence[Sequence[Sequence[float]]]
    """Anchors (A, 4) around the upper left pixel of each level."""
    strides: Sequence[int]
    """Pixels of the image per pixel of each level."""
    levels: Sequence[str]
    """Names of the levels."""
    proposals: int
    """Regions per level before, and per image after the non-maximum suppression of the first stage."""
    proposal_nms: float
    """IoU threshold for the non-maximum suppression of the first stage."""
    proposal_side: float
    """Regions with a shorter side below this length are removed."""
    score: float
    """Score threshold of detections."""
    nms: float
    """IoU threshold for non-maximum suppression."""
    detections: int
    """Maximum number of detections per image."""
    pools: Mapping[str, Mapping[str, object]]
    """Fields of `Pooling` of box, mask and keypoint."""
    stages: Sequence[Sequence[float]]
    """Divisors of the box deltas of each box stage; a cascade has several stages, with boxes common to all classes."""
    cascade: bool = False

    def pool(self, part: str) -> Pooling:
        """Return the RoIAlign of box, mask or keypoint."""
        return Pooling(**self.pools[part])  # type: ignore[arg-type]

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[Detections]:
        """Return the detections of each image."""
        answers: list[Detections] = []
        for index, size in enumerate(sizes):
            own = {name: values[index] for name, values in raw.items()}
            maps = [own[f"map_{name}"] for name in self.pool("box").levels]
            found = self._detect(maps, self.regions(own, size), size, graphs)
            answers.append(self._with_parts(found, maps, graphs))
        return answers

    def regions(self, raw: Arrays, size: Size) -> np.ndarray:
        """Return the regions (N, 4) of one image that may contain an object, from its outputs."""
        boxes, scores, groups = [], [], []
        for level, (name, stride) in enumerate(zip(self.levels, self.strides, strict=True)):
            cells = np.array(self.anchors[level], np.float32)
            objectness = raw[f"objectness_{name}"]
            _, height, width = objectness.shape
            chosen = best(objectness.transpose(1, 2, 0).ravel(), self.proposals)
            place, cell = np.divmod(chosen, len(cells))
            row, column = np.divmod(place, width)
            deltas = raw[f"deltas_{name}"].reshape(len(cells), 4, height, width)[cell, :, row, column]
            own = clipped(moved(deltas, anchors_at(chosen, cells, width, stride), (1.0, 1.0, 1.0, 1.0)), *size)
            good = large(own, self.proposal_side)
            boxes.append(own[good])
            scores.append(sigmoid(objectness[cell, row, column])[good])
            groups.append(np.full(len(boxes[-1]), level))
        box = np.concatenate(boxes)
        kept = suppressed(box, np.concatenate(scores), np.concatenate(groups), self.proposal_nms)
        return box[kept[: self.proposals]]

    def _detect(
        self, maps: list[np.ndarray], regions: np.ndarray, size: Size, graphs: Mapping[str, Graph]
    ) -> Detections:
        """Return the detections of one image, without masks and keypoints."""
        if not len(regions):
            return _nothing()
        pool = self.pool("box")
        total = np.zeros((len(regions), len(self.classes) + 1), np.float32)
        for stage, weights in enumerate(self.stages):
            name = f"box{stage}" if self.cascade else "box"
            outputs = graphs[name]({"pooled": pool(maps, regions)})
            scores = softmax(outputs["logits"])
            deltas = outputs["deltas"].reshape(len(regions), -1, 4)
            boxes = clipped(moved(deltas, regions, weights), *size)
            if self.cascade:
                regions, total = boxes[:, 0], total + scores
        if self.cascade:
            scores = np.divide(total, np.float32(len(self.stages)))
            boxes = np.broadcast_to(regions[:, None], (*scores.shape, 4))
        row, label = np.nonzero(scores[:, 1:] > np.float32(self.score))
        found, values = boxes[row, label + 1], scores[row, label + 1]
        good = large(found, _SMALLEST)
        return _selected(found[good], values[good], label[good], self.nms, self.detections)

    def _with_parts(self, found: Detections, maps: list[np.ndarray], graphs: Mapping[str, Graph]) -> Detections:
        """Return detections with masks and keypoints."""
        boxes, labels = found["boxes"], found["labels"]
        for part in ("mask", "keypoint"):
            if part not in self.pools:
                continue
            pool = self.pool(part)
            if len(boxes):
                logits = graphs[part]({"pooled": pool(maps, boxes)})["logits"]
            if part == "mask":
                chosen = sigmoid(logits[np.arange(len(boxes)), labels + 1]) if len(boxes) else np.zeros((0, 28, 28))
                found["masks"] = chosen[:, None].astype(np.float32)
            elif len(boxes):
                found["keypoints"], found["keypoints_scores"] = keypoints(logits, boxes)
            else:
                found["keypoints"] = np.zeros((0, 0, 3), np.float32)
                found["keypoints_scores"] = np.zeros((0, 0), np.float32)
        return found


def _selected(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float, count: int) -> Detections:
    """Return the `count` best detections after non-maximum suppression per class."""
    kept = suppressed(boxes, scores, labels, iou)[:count]
    return {"boxes": boxes[kept], "labels": labels[kept].astype(np.int64), "scores": scores[kept]}


def _nothing() -> Detections:
    return {
        "boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "scores": np.zeros(0, np.float32)
    }  # fmt: skip
