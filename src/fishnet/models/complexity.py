"""Parameters and multiply-adds of a model, counted on the meta device."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_COUNTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model."""

    params: int
    """Trainable and frozen parameters, without buffers such as running statistics."""
    macs: int
    """Multiply-adds of convolutions and linear layers for one image, without biases, norms and activations."""


def count(model: nn.Module, size: int | tuple[int, int] = 224, in_chans: int | None = None) -> Complexity:
    """Count parameters and multiply-adds of one forward pass on the meta device; the model is not changed.

    Args:
        model: Network with input (N, in_chans, H, W), such as a FishNet or a timm backbone.
        size: Height and width of the image in pixels, or the side of a square image.
        in_chans: Number of channels of the image; None takes `model.in_chans` if it exists, else 3.

    Returns:
        The counts for one image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = in_chans or getattr(model, "in_chans", None) or 3
    # Copies of the tensors on the meta device: counting needs no memory, whatever the size of the model.
    memo: dict[int, Tensor] = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in [*model.parameters(), *model.buffers()]
    }
    shadow = copy.deepcopy(model, memo).eval()
    macs = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += _multiply_adds(layer, inputs[0], output)

    for module in shadow.modules():
        if isinstance(module, _COUNTED):
            module.register_forward_hook(add)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(1, channels, height, width, device="meta", dtype=dtype))
    return Complexity(params=sum(p.numel() for p in model.parameters()), macs=macs)


def _multiply_adds(layer: nn.Module, given: Tensor, output: Tensor) -> int:
    """Return the multiply-adds of one layer: each weight is used once per position of the kernel."""
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    positions = given if layer.transposed else output
    return layer.weight.numel() * positions.shape[0] * positions[0, 0].numel()
