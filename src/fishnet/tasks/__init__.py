"""Tasks: what is predicted. The engine trains any object of the form `Task`; only here do tasks differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from fishnet.cards import ModelCard
from fishnet.config import TrainConfig
from fishnet.drawing.display import Display
from fishnet.errors import UsageError, did_you_mean
from fishnet.models.network import Network


class Evaluation(Protocol):
    """What an evaluator found: named figures and what a report shows of them."""

    metrics: dict[str, float]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        ...


class Evaluator(Protocol):
    """Collects predictions of a whole split, over all processes, and computes the figures."""

    primary: str

    def compute(self) -> Evaluation:
        """Return the figures of all predictions since the last reset."""
        ...

    def reset(self) -> None:
        """Forget all predictions."""
        ...


class Task(Protocol):
    """One kind of prediction: its data, model, loss, evaluator and pictures."""

    name: str
    config: TrainConfig

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """List of samples -> batch; nothing stacks tensors."""
        ...

    @property
    def train_data(self) -> Dataset[Any]:
        """The training split, a map-style data set of known length."""
        ...

    @property
    def val_data(self) -> Dataset[Any]:
        """The validation split."""
        ...

    def train_order(self) -> dict[str, Any]:
        """Return what `TrainBatches` should know of the training split: `groups`, `repeats`, or nothing."""
        ...

    def build_model(self) -> Network:
        """Return the network, on the CPU, with its starting weights."""
        ...

    def model_card(self) -> ModelCard:
        """Return what predicting and judging need to know of the network."""
        ...

    def training_loss(self, model: nn.Module, batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
        """Return the mean losses of a batch by name, scalars with gradient whose sum is minimised."""
        ...

    def evaluator(self, device: Any) -> Evaluator:
        """Return a fresh evaluator for the validation split."""
        ...

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: Any) -> None:
        """Predict one batch and hand it to the evaluator."""
        ...

    def draw_batch(self, batch: dict[str, Any]) -> Image.Image:
        """Return a picture of an augmented training batch with its targets."""
        ...

    def draw_predictions(self, model: nn.Module, device: torch.device) -> Image.Image:
        """Return a picture of what the network answers on some validation images, beside the truth."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return figures by which a changed data set is noticed."""
        ...


def make_task(name: str, config: TrainConfig) -> Task:
    """Return the task of that name on the data of the settings; problems with the data are raised here."""
    if name == "classification":
        from fishnet.tasks.classification.training import ClassificationTask

        return ClassificationTask(config)
    if name == "detection":
        from fishnet.tasks.detection.training import DetectionTask

        return DetectionTask(config)
    raise UsageError(f"unknown task {name!r}.{did_you_mean(name, TASK_NAMES)} Known are {', '.join(TASK_NAMES)}")


def get_display(name: str) -> Display:
    """Return what reports show of the evaluations of a task."""
    if name == "classification":
        from fishnet.tasks.classification.evaluator import DISPLAY as classification

        return classification
    if name == "detection":
        from fishnet.tasks.detection.evaluator import DISPLAY as detection

        return detection
    raise UsageError(f"unknown task {name!r}.{did_you_mean(name, TASK_NAMES)} Known are {', '.join(TASK_NAMES)}")


TASK_NAMES = ("classification", "detection")

__all__ = ["TASK_NAMES", "Evaluation", "Evaluator", "Task", "get_display", "make_task"]
