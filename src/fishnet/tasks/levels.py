"""What judging and predicting need of a task, made from nothing but a model's card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import nn

from fishnet.cards import ModelCard
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks import Evaluation

BadImages = Literal["stop", "skip"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Level(Protocol):
    """A task without its training: how its data is opened and judged, and what a network of it answers."""

    card: ModelCard

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """List of samples -> batch; nothing stacks tensors."""
        ...

    def open_split(self, root: Path, split: str, bad_images: BadImages) -> Any:
        """Return a data set prepared for the model, its targets numbered as the model's outputs."""
        ...

    def evaluator(self, dataset: Any, device: Any) -> Any:
        """Return a fresh evaluator for that data set."""
        ...

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: Any) -> None:
        """Predict one batch and hand it to the evaluator."""
        ...

    def describe(self, evaluation: Any) -> list[str]:
        """Return the figures as lines of text."""
        ...

    def pictures(self, evaluation: Any) -> Mapping[str, Any]:
        """Return figures (matplotlib) to save, by name."""
        ...

    def documents(self, evaluator: Any) -> Mapping[str, Any]:
        """Return further JSON documents to save beside the figures, by name."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """Return what the model sees of an RGB image."""
        ...

    def answer(self, model: nn.Module, prepared: list[Any]) -> list[dict[str, Any]]:
        """Return what the model says of prepared images."""
        ...

    def entry(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer as it stands in results.json."""
        ...

    def headline(self, entry: dict[str, Any]) -> str:
        """Return an entry of results.json in a few words."""
        ...

    def painter(self, out: Path, images: int) -> Painter:
        """Return what draws the answers to so many images into a folder."""
        ...


class Painter(Protocol):
    """Draws answers one after the other, so that memory does not grow with the number of images."""

    written: list[Path]
    drawn: int
    """Number of images drawn so far."""

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size that `add` wants; called where images are loaded."""
        ...

    def wants(self, index: int) -> bool:
        """Whether the image of that number is drawn at all."""
        ...

    def add(self, item: dict[str, Any], answer: dict[str, Any]) -> None:
        """Draw one image: `item` has `file` and `thumbnail`."""
        ...

    def finish(self) -> None:
        """Write what is not on disk yet, and remove pictures of an earlier call."""
        ...


def make_level(card: ModelCard, **options: Any) -> Level:
    """Return the level of a card's task.

    Args:
        card: What the model file says of its network.
        options: How to answer; options of other tasks are refused, None stands for the default.

    Raises:
        UsageError: An option that this task does not have.
        FishnetError: A task that this version does not know.
    """
    given = {name: value for name, value in options.items() if value is not None}
    kind: Any
    if card.task == "classification":
        from fishnet.tasks.classification.task import ClassificationLevel as kind
    elif card.task == "detection":
        from fishnet.tasks.detection.task import DetectionLevel as kind
    else:
        raise FishnetError(f"models for {card.task} are unknown to this version of fishnet")
    if foreign := sorted(set(given) - set(kind.OPTIONS)):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise UsageError(f"{flags} has no meaning for {card.task}")
    return kind(card, **given)


def judge(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    evaluate_batch: Callable[[nn.Module, dict[str, Any], Any], None],
    evaluator: Any,
    move: Callable[[dict[str, Any]], dict[str, Any]],
    arithmetic: AbstractContextManager[Any] | None = None,
) -> Evaluation:
    """Run a network in eval mode over all batches and return what the evaluator found; every mode is put back.

    Args:
        model: Network on its device.
        batches: What the loader gives.
        evaluate_batch: Predicts a batch and hands it to the evaluator.
        evaluator: Takes the predictions; what it holds already counts too.
        move: Brings a batch to the device.
        arithmetic: Autocast, or nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), arithmetic or nullcontext():
            for batch in batches:
                evaluate_batch(model, move(batch), evaluator)
    finally:
        for module, training in modes:
            module.training = training
    return evaluator.compute()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context that computes in a precision: fp32, bf16 or fp16."""
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()


def mover(device: torch.device, channels_last: bool = True) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that brings a batch to a device, image batches in NHWC memory order."""

    def put(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if channels_last and value.ndim == 4 and value.is_floating_point():
                return value.to(device, non_blocking=True, memory_format=torch.channels_last)
            return value.to(device, non_blocking=True)
        if isinstance(value, list):
            return [put(inner) for inner in value]
        return {name: put(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    return put
