"""A network -> its copy for inference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fishnet.models.fusing.fish import fuse_fish
from fishnet.models.fusing.folding import fold_norms
from fishnet.models.network import Network

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference between a network and its fused copy, relative to the largest value of an output."""
_COARSE = 0.05
_SIZES = (64, 224, 256, 32)
"""Sides of the trial inputs in pixels; a network of one image size takes its own."""


class NotFused(UserWarning):
    """A network could not be fused; its copy computes as before."""


def fuse(network: ModuleT, eager: bool = False, example: Tensor | None = None) -> ModuleT:
    """Return a copy of a network for inference that computes the same, faster.

    BatchNorms are folded into the convolutions before them, where nothing else reads the output of the convolution. For
    PyTorch itself on a CPU, `eager` goes further in FishNets and 3x3 convolutions of any network: BatchNorm and ReLU
    before a 1x1 convolution become one clamp, 1x1 convolutions matrix products that add to the residual in place, and
    3x3 convolutions with at least 64 channels use minimal filtering (Winograd). Such a network is not for exporting:
    runtimes have kernels of their own for convolutions.

    The copy is in eval mode, also of a network in training mode, and its parameters have no gradients. A network that
    is fused already stays as it is. Outputs of the copy are compared with those of the network on a small random image:
    they are equal to 1e-4 of the largest value in float32, 1e-9 in float64.

    Args:
        network: A `Network` of this library with its heads, a FishNet, a timm model, or another network.
        eager: Whether the network will run in PyTorch itself, on a CPU, in float32 or float64.
        example: Batch (N, C, H, W) to compare on, for networks that reject images of 64x64, 224x224 and their own size.

    Returns:
        The copy. If it differs from the network, or rejects all trial inputs, a plain copy, with a `NotFused` warning.
    """
    copy = _copy(network)
    weights = [module.weight for module in copy.modules() if isinstance(module, nn.Conv2d)]
    if not weights:
        return copy
    with torch.no_grad(), torch.autocast(weights[0].device.type, enabled=False):
        batch = _trial_batch(copy, example)
        if batch is None:
            warnings.warn("the network accepts no trial image: pass an example to fuse", NotFused, stacklevel=2)
            return copy
        before = _outputs(copy, batch)
        fold_norms(copy, lambda: _outputs(copy, batch))
        if eager:
            fuse_fish(copy)
        difference = _difference(before, _outputs(copy, batch))
    if difference <= TOLERANCE.get(batch.dtype, _COARSE):
        return copy
    warnings.warn(f"the fused network differs by {difference:.1e}: it is not used", NotFused, stacklevel=2)
    return _copy(network)


def _copy(network: ModuleT) -> ModuleT:
    return deepcopy(network).eval().requires_grad_(False)


def _outputs(network: nn.Module, batch: Tensor) -> object:
    return network.raw(batch) if isinstance(network, Network) else network(batch)


def _trial_batch(network: nn.Module, example: Tensor | None) -> Tensor | None:
    """Return a batch that the network accepts; None if there is none."""
    if example is not None:
        return example
    for batch in _batches(network):
        try:
            _outputs(network, batch)
        except Exception:  # networks of other packages raise anything for a size that they do not take
            continue
        return batch
    return None


def _batches(network: nn.Module) -> Iterator[Tensor]:
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    sizes = [(side, side) for side in _SIZES]
    if own := config.get("input_size"):
        sizes.insert(1, tuple(own[-2:]))
    images = len(network.batcher.mean) if isinstance(network, Network) else own[0] if own else 3
    for channels in dict.fromkeys((conv.in_channels, images)):  # they differ behind space-to-depth
        generator = torch.Generator().manual_seed(0)
        for size in sizes:
            batch = torch.randn(1, channels, *size, generator=generator)
            yield batch.to(conv.weight.device, conv.weight.dtype).contiguous(memory_format=torch.channels_last)


def _difference(before: object, after: object) -> float:
    """Return the largest difference of any output, relative to the largest value of the output; NaN if one is NaN."""
    found = [
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(_floats(before), _floats(after), strict=True)
        if a.numel()
    ]
    return float(torch.tensor([0.0, *found]).max())  # the built-in max may drop NaN


def _floats(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
