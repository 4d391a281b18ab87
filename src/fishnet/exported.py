"""Exported networks as runtimes: `fishnet export` writes their folders, evaluation and prediction use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fishnet.cards import ModelCard
from fishnet.errors import FishnetError
from fishnet.models.heads.types import Answers
from fishnet.models.network import Images
from fishnet.runner.engine import EXPORT_JSON, Engine, open_engine, read_description
from fishnet.runner.errors import RunnerError
from fishnet.runner.prepare import padded


class ExportedRuntime:
    """Runs an exported network on the CPU; its outputs are tensors, like those of PyTorch.

    Args:
        engine: Graphs and decoders.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, images: Images) -> Answers:
        """Return the predictions by head, each with an entry per image.

        Raises:
            FishnetError: The runtime cannot compile the network.
        """
        try:
            found = self._predicted(images)
        except RunnerError as error:
            raise FishnetError(str(error)) from error
        return {name: [_tensors(answer) for answer in answers] for name, answers in found.items()}

    def _predicted(self, images: Images) -> dict[str, list[object]]:
        if isinstance(images, Tensor) and images.is_floating_point():
            batch = images.float().cpu().numpy()
            size = batch.shape[2], batch.shape[3]
            canvas = padded([size], self.engine.preparation.multiple)
            batch = np.pad(batch, ((0, 0), (0, 0), (0, canvas[0] - size[0]), (0, canvas[1] - size[1])))
            return self.engine.decode(self.engine.raw(batch), canvas, [size] * len(batch))
        return self.engine.run([image.cpu().permute(1, 2, 0).numpy() for image in images])


def _tensors(answer: object) -> object:
    """Return a prediction with its arrays converted to tensors."""
    if isinstance(answer, Mapping):
        return {name: _tensors(value) for name, value in answer.items()}
    return torch.from_numpy(np.ascontiguousarray(answer))


def is_exported(source: str | Path) -> bool:
    """Return whether a folder was written by `fishnet export`."""
    return (Path(source) / EXPORT_JSON).is_file()


def exported_card(folder: Path) -> ModelCard:
    """Return the card of the network that was exported.

    Raises:
        FishnetError: The folder is damaged.
    """
    try:
        found = read_description(folder)
    except RunnerError as error:
        raise FishnetError(str(error)) from error
    return ModelCard.from_json(json.dumps(found.get("card")), folder / EXPORT_JSON)


def exported_format(folder: Path) -> str:
    """Return the format of an exported network: torch, onnx or openvino."""
    try:
        return str(read_description(folder).get("format"))
    except RunnerError as error:
        raise FishnetError(str(error)) from error


def open_exported(folder: Path, often: int | None = None) -> ExportedRuntime:
    """Open an exported network as a runtime.

    Args:
        folder: Exported folder.
        often: See `fishnet.runner.engine.open_engine`.

    Raises:
        FishnetError: The folder is incomplete or damaged, the package that runs it is missing, or the machine lacks
            the precision.
    """
    try:
        return ExportedRuntime(open_engine(folder, often=often))
    except RunnerError as error:
        raise FishnetError(str(error)) from error
