"""Graphs of a network for export, and the description of its decoders."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.deploy.heads.registry import Part, export_of
from fishnet.files import Json
from fishnet.models.fusing.fish import convolve_sums
from fishnet.models.fusing.network import NotFused, fuse
from fishnet.models.network import Network
from fishnet.runner.engine import DENSE, INPUT

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class DenseGraph(nn.Module):
    """Images (N, 3, H, W) -> raw outputs of all heads, by head and name.

    Pixel logits are resized to the size of the images, and the maps for region pooling are channels-last.

    Args:
        network: Network in eval mode.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.exports = {name: export_of(head) for name, head in network.heads.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by `head_name`."""
        dtype = next(self.network.parameters()).dtype
        height, width = images.shape[-2:]
        return {
            f"{head}_{name}": value
            for head, raw in self.network.raw(images.to(dtype)).items()
            for name, value in self.exports[head].outputs(self.network.heads[head], raw, (height, width)).items()
        }


def parts_of(network: Network, card: ModelCard) -> dict[str, Part]:
    """Return the graphs of a network by name: `dense`, and those of the region stage, if it has one.

    Raises:
        UsageError: A head has no decoder outside of PyTorch.
    """
    height, width = _example_size(network, card)
    example = torch.zeros(2, card.architecture.in_chans, height, width)
    dense = DenseGraph(network)
    parts = {DENSE: Part(dense, INPUT, example, _multiple(network))}
    for name, export in dense.exports.items():
        parts |= export.parts(network, name)
    return {name: replace(part, module=part.module.eval()) for name, part in parts.items()}


def _multiple(network: Network) -> int:
    return network.batcher.stride


def _example_size(network: Network, card: ModelCard) -> tuple[int, int]:
    """Return the image size for tracing; free height and width differ, and no pyramid map has a side of 1."""
    step = _multiple(network)
    return (card.size, card.size) if step == 1 else (9 * step, 10 * step)


def fused_for(network: ModuleT, form: str, precision: str, example: Tensor | None = None) -> ModuleT:
    """Return a copy of a network for inference in the runtime of a format; see `fishnet.deploy.fuse`.

    OpenVINO has only a slow kernel for the strided slices of the channel reductions of a FishNet: a 1x1 convolution is
    faster in all precisions but fp32.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotFused)
        fused = fuse(network, example=example)
    if form == "openvino" and precision != "fp32":
        convolve_sums(fused)
    return fused


def head_specs(network: Network, card: ModelCard) -> dict[str, Json]:
    """Return the entries of export.json that describe the decoders, by head.

    Raises:
        UsageError: A head has no decoder outside of PyTorch.
    """
    return {name: export_of(head).spec(head, list(card.heads[name].classes)) for name, head in network.heads.items()}
