"""Decoder of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .head import Arrays, Graph, Head, Json, Thresholds, check_finite, sigmoid, softmax
from .prepare import Size


@dataclass(frozen=True)
class ClassifierHead(Head[np.ndarray]):
    """Logits of every class, float32 (classes,) per image."""

    classes: Sequence[str]
    multi_label: bool = False
    """Whether an image may have any number of classes."""

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[np.ndarray]:
        """Return the logits of each image."""
        return list(raw["logits"])

    def entry(self, answer: np.ndarray, seen: Size, size: Size, thresholds: Thresholds) -> Json:
        """Return the most probable classes, or those above the threshold if an image may have several."""
        check_finite(answer)
        scores = sigmoid(answer) if self.multi_label else softmax(answer)
        order = np.argsort(-answer, kind="stable")
        chosen = [i for i in order if scores[i] > thresholds.threshold] if self.multi_label else order
        limit = None if self.multi_label else thresholds.top
        return {
            "predictions": [
                {"label": self.classes[int(i)], "index": int(i), "score": round(float(scores[i]), 6)}
                for i in chosen[:limit]
            ]
        }
