"""Trial runs of a backbone on the meta device: shapes of its maps and unused parameters, without computation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SIZES = ((96, 160), (224, 288))
"""Heights and widths in pixels of the trial images: multiples of 32, not square."""

# Exceptions that networks raise in forward for an image of the wrong size; they differ between families.
_REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, NotImplementedError)


def find_fault(
    network: nn.Module,
    channels: Sequence[int],
    strides: Sequence[int],
    in_chans: int = 3,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> str | None:
    """Return why a network on the meta device does not give the expected maps, or None if it does.

    Args:
        network: Images (N, in_chans, H, W) -> maps (N, C, H / stride, W / stride).
        channels: Channels of each map.
        strides: Stride of each map.
        in_chans: Number of channels of the images.
        sizes: Heights and widths in pixels to try.
    """
    network.eval()
    for height, width in sizes:
        try:
            with torch.no_grad():
                maps = network(torch.empty(1, in_chans, height, width, device="meta"))
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            return f"{type(error).__name__}{f': {reason}' if reason else ''} for {height}x{width} pixels"
        for found, depth, stride in zip(maps, channels, strides, strict=True):
            expected = (1, depth, height // stride, width // stride)
            if found.shape != expected:
                return (
                    f"its map of stride {stride} is {_size(found.shape)} instead of {_size(expected)} for "
                    f"{height}x{width} pixels"
                )
    return None


def freeze_idle(network: nn.Module, first: int, in_chans: int = 3) -> list[str]:
    """Disable the gradients of parameters that no output depends on; DDP would wait for them forever.

    Args:
        network: Images (N, in_chans, H, W) -> maps, and a vector or None; the values of its tensors are not used.
        first: Index of the first map that is used.
        in_chans: Number of channels of the images.

    Returns:
        Names of the frozen parameters.
    """
    wanted = {name: p for name, p in network.named_parameters() if p.requires_grad}
    stand_ins = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in wanted.items()}
    rest = [*network.named_parameters(), *network.named_buffers()]
    tensors = {name: torch.empty_like(t, device="meta") for name, t in rest if name not in wanted} | stand_ins
    images = torch.empty(2, in_chans, *SIZES[0], device="meta")
    with torch.enable_grad():
        maps, vector = torch.func.functional_call(network, tensors, (images,))
        used: list[Tensor] = [*maps[first:], *([] if vector is None else [vector])]
        total = torch.stack([found.mean() for found in used]).sum()
        gradients = torch.autograd.grad(total, list(stand_ins.values()), allow_unused=True)
    idle = [name for name, gradient in zip(stand_ins, gradients, strict=True) if gradient is None]
    for name in idle:
        wanted[name].requires_grad_(False)
    return idle


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:]))
