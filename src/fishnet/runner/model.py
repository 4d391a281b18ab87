"""Prediction with an exported network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from .engine import Json, open_engine, read_description
from .errors import RunnerError
from .heads import ClassifierHead, Detections, PixelHead, sigmoid, softmax
from .images import read_rgb, to_rgb
from .masks import pasted, run_lengths
from .prepare import Size

PIXEL_CENTER = 0.5
"""COCO gives keypoints as pixel indices, networks as distances from the upper left corner."""
_STRIP = 2**18


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that select the predictions."""

    top: int = 5
    """Number of classes per image, for models with one label per image."""
    threshold: float = 0.5
    """Minimum score of a class, for models with several labels per image."""
    score: float = 0.5
    """Minimum score of an object."""
    max_detections: int = 100
    """Maximum number of objects per image."""

    def __post_init__(self) -> None:
        for name, count in (("top", self.top), ("max-detections", self.max_detections)):
            if count < 1:
                raise RunnerError(f"--{name} must be at least 1, not {count}")


class Model:
    """An exported network.

    Examples:
        >>> model = Model("exported")  # doctest: +SKIP
        >>> model("cat.jpg")["predictions"][0]  # doctest: +SKIP
        {'label': 'siamese', 'index': 2, 'score': 0.97}

    Args:
        folder: Folder that `fishnet export` wrote.
        allow_fallback: Compute in fp32 if this machine does not support the precision of the export.
        thresholds: Thresholds instead of those in export.json.

    Raises:
        RunnerError: The folder is incomplete, damaged or of another model, something is missing to run it, or a
            threshold is unknown or out of range.
    """

    def __init__(
        self, folder: str | Path, allow_fallback: bool = False, thresholds: Mapping[str, float | None] | None = None
    ) -> None:
        folder = Path(folder)
        self.description: Json = read_description(folder)
        self.engine = open_engine(folder, allow_fallback)
        values = dict(cast(Mapping[str, float], self.description.get("thresholds") or {}))
        values |= {name: value for name, value in (thresholds or {}).items() if value is not None}
        known = [field.name for field in fields(Thresholds)]
        if unknown := [name for name in values if name not in known]:
            raise RunnerError(f"unknown threshold {unknown[0]!r}; thresholds are {', '.join(known)}")
        self.thresholds = Thresholds(**values)  # type: ignore[arg-type]

    def __call__(self, image: str | Path | bytes | Image.Image) -> Json:
        """Predict on an image.

        Args:
            image: Path or content of an image file, or an image of Pillow; neither resized nor normalized.

        Returns:
            `predictions`, as in results.json of `fishnet predict`: label, index and score of classes, with the box,
            mask or keypoints of objects, or with the share of the pixels. A network that classifies pixels adds
            `label_map`, class indices (H, W). A network with several heads returns the predictions of each under image,
            region and pixel.

        Raises:
            RunnerError: The image cannot be used.
        """
        shown = read_rgb(image) if isinstance(image, str | Path | bytes) else to_rgb(image)
        pixels = self.engine.preparation(shown)
        answers = self.engine.run([pixels])
        seen: Size = (pixels.shape[0], pixels.shape[1])
        size: Size = (shown.height, shown.width)
        found = {name: self._entry(name, own[0], seen, size) for name, own in answers.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        maps = {name: value for own in found.values() for name, value in own.items() if name != "predictions"}
        return {**{name: own["predictions"] for name, own in found.items()}, **maps}

    def _entry(self, name: str, answer: object, seen: Size, size: Size) -> Json:
        head = self.engine.heads[name]
        if isinstance(head, ClassifierHead):
            return self._classes(head, cast(np.ndarray, answer))
        if isinstance(head, PixelHead):
            return _pixels(head, cast(np.ndarray, answer), size)
        return self._objects(list(head.classes), cast(Detections, answer), seen, size)

    def _classes(self, head: ClassifierHead, logits: np.ndarray) -> Json:
        _check(logits)
        scores = sigmoid(logits) if head.multi_label else softmax(logits)
        order = np.argsort(-logits, kind="stable")
        chosen = [i for i in order if scores[i] > self.thresholds.threshold] if head.multi_label else order
        limit = None if head.multi_label else self.thresholds.top
        return {
            "predictions": [
                {"label": head.classes[int(i)], "index": int(i), "score": round(float(scores[i]), 6)}
                for i in chosen[:limit]
            ]
        }

    def _objects(self, classes: list[str], found: Detections, seen: Size, size: Size) -> Json:
        _check(found["scores"])
        down, across = np.float32(size[0] / seen[0]), np.float32(size[1] / seen[1])
        boxes = found["boxes"] * np.array([across, down, across, down], np.float32)
        kept = np.flatnonzero(found["scores"] >= self.thresholds.score)[: self.thresholds.max_detections]
        entries = []
        for place in kept:
            index = int(found["labels"][place])
            one: Json = {
                "label": classes[index],
                "index": index,
                "score": round(float(found["scores"][place]), 6),
                "box": [round(float(value), 2) for value in boxes[place]],
            }
            if "masks" in found:
                mask = pasted(found["masks"][place, 0], boxes[place], *size)
                one["mask"] = {"size": [*size], "counts": run_lengths(mask)}
            if "keypoints" in found:
                points = found["keypoints"][place] * np.array([across, down, 1], np.float32)
                points = points - np.array([PIXEL_CENTER, PIXEL_CENTER, 0], np.float32)
                one["keypoints"] = [[round(float(value), 2) for value in point] for point in points]
            entries.append(one)
        return {"predictions": entries}


def _pixels(head: PixelHead, logits: np.ndarray, size: Size) -> Json:
    _check(logits)
    labels = label_map(logits, size)
    counts = np.bincount(labels.ravel(), minlength=len(head.classes))
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    predictions = [
        {"label": head.classes[i], "index": i, "share": round(float(counts[i] / labels.size), 6)} for i in order
    ]
    return {"predictions": predictions, "label_map": labels}


def _check(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise RunnerError("the model gave NaN or infinite outputs: its weights are damaged")


def label_map(logits: np.ndarray, size: Size) -> np.ndarray:
    """Return the most probable class of every pixel, computed in strips, so that memory grows only with the width.

    Args:
        logits: float32 (classes, h, w).
        size: Height and width of the result; logits are resized to it bilinearly.

    Returns:
        Class indices (H, W): uint8, or int64 for more than 256 classes.
    """
    found = np.empty(size, np.uint8 if len(logits) <= 256 else np.int64)
    step = max(1, _STRIP // size[1])
    left, right, across = _neighbors(np.arange(size[1]), logits.shape[2], size[1])
    for top in range(0, size[0], step):
        rows = np.arange(top, min(size[0], top + step))
        upper, lower, down = _neighbors(rows, logits.shape[1], size[0])
        strip = logits[:, upper] + down[:, None] * (logits[:, lower] - logits[:, upper])
        if logits.shape[2] != size[1]:
            strip = strip[:, :, left] + across * (strip[:, :, right] - strip[:, :, left])
        found[rows] = strip.argmax(0)
    return found


def _neighbors(places: np.ndarray, size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source pixels of each pixel along a side, and the weight of the second."""
    exact = np.clip((places + 0.5) * (size / wanted) - 0.5, 0, size - 1)
    low = np.floor(exact).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (exact - low).astype(np.float32)
