"""Networks to measure: models by name, and networks of runs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.models.complexity import count
from fishnet.models.network import Network
from fishnet.models.specs import parse_spec


class RawOutputs(nn.Module):
    """Network of a run without decoding: (N, C, H, W) -> tensors."""

    def __init__(self, network: Network, card: ModelCard) -> None:
        super().__init__()
        self.network, self.card = network, card

    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return the raw outputs of all heads."""
        return [output for raw in self.network.raw(batch).values() for output in raw.values()]


def build(model: str) -> nn.Module:
    """Return a model by its name, with reproducible random weights, or the network of a run folder.

    Raises:
        UsageError: The model is unknown.
        FishnetError: The run has no model file, or pytorchcv is not installed.
    """
    if Path(model).is_dir():
        from fishnet.loading import load_model

        return RawOutputs(*load_model(model, "cpu")[:2])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # irrelevant warnings of other packages
        torch.manual_seed(0)
        return parse_spec(model, "MODEL").build()


def sizes(network: nn.Module, size: int) -> tuple[int, int]:
    """Return the parameters of a network, and its multiply-adds for one image of size x size pixels."""
    found = count(network, size)
    return found.params, found.macs
