"""Interface of the decoders of exported networks: from graph outputs to predictions, and to JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .errors import RunnerError
from .prepare import Size

Arrays = dict[str, np.ndarray]
"""Arrays by name."""
Graph = Callable[[Arrays], Arrays]
"""A part of a network: inputs by name -> outputs by name."""
Json = dict[str, object]
"""Plain values, as JSON files contain them."""
Prediction = TypeVar("Prediction")
"""Prediction for an image, such as an array of logits."""


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
        for name, value in (("threshold", self.threshold), ("score", self.score)):
            if not 0 <= value <= 1:
                raise RunnerError(f"--{name} must be between 0 and 1, not {value}")


class Head(Generic[Prediction]):
    """Decoder of a head."""

    classes: Sequence[str]
    """Class names in the order of the outputs."""

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[Prediction]:
        """Return one prediction per image.

        Args:
            raw: Outputs of the head.
            canvas: Height and width of the batch.
            sizes: Height and width of each image in it.
            graphs: Graphs of the region stage by name.
        """
        raise NotImplementedError

    def entry(self, answer: Prediction, seen: Size, size: Size, thresholds: Thresholds) -> Json:
        """Return `predictions`, a list of JSON values, and further values by name, such as `label_map`.

        Args:
            answer: Prediction for an image, as `decode` returns it.
            seen: Height and width of the image in the network's input.
            size: Height and width of the image.
            thresholds: Thresholds that select the predictions.

        Raises:
            RunnerError: The prediction has values that are not finite.
        """
        raise NotImplementedError


def check_finite(values: np.ndarray) -> None:
    """Raise RunnerError if an output has values that are not finite."""
    if not np.isfinite(values).all():
        raise RunnerError("the model gave NaN or infinite outputs: its weights are damaged")


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-values)) without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax over the last dimension."""
    shares = np.exp(values - values.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
