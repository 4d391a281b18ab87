"""FishNet modules built from the kernels for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fishnet.models.blocks import Block, ChannelSum, Projection
from fishnet.models.fishnet import Score
from fishnet.models.fusing.folding import Affine, Norm, affine_of
from fishnet.models.fusing.kernels import Pointwise, WinogradConv2d, suits_winograd


class FusedBlock(nn.Module):
    """A `Block` whose second and third BatchNorm are folded: x -> s(x) + w3 * ReLU(w2 * ReLU(w1 * n1(x))).

    Args:
        block: Block to take over; its second convolution is shared.
        owns_input: Whether nothing else reads the input, so that it may be overwritten with the output.
    """

    def __init__(self, block: Block, owns_input: bool) -> None:
        super().__init__()
        self.first = Pointwise(block.conv1, _affine(block.norm1), relu=True)
        winograd = suits_winograd(block.conv2)
        self.second: nn.Conv2d = WinogradConv2d(block.conv2, relu=True) if winograd else block.conv2
        self.third = Pointwise(block.conv3)
        self.shortcut = nn.Sequential(
            *(_fused(part) for part in (block.shortcut, block.reduce) if not isinstance(part, nn.Identity))
        )
        self.in_place = owns_input or len(self.shortcut) > 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the block (N, C, H, W)."""
        y = self.second(self.first(x))
        if not isinstance(self.second, WinogradConv2d):
            y = F.relu(y, inplace=True)
        return self.third(y, self.shortcut(x), self.in_place)


def fuse_fish(network: nn.Module) -> None:
    """Replace blocks, projections and the score of FishNets in a network, in place, and wide 3x3 convolutions.

    BatchNorms that follow a convolution are folded already. Modules of another form are unchanged.
    """
    for parent in list(network.modules()):
        if isinstance(parent, FusedBlock):
            continue
        for name, child in list(parent.named_children()):
            if type(child) is Block and _is_folded(child.norm2) and _is_folded(child.norm3) and _is_norm(child.norm1):
                # the first block of a sequence gets a map that others may read
                new: nn.Module = FusedBlock(child, owns_input=isinstance(parent, nn.Sequential) and name != "0")
            elif type(child) is Score and _is_folded(child.norm2) and _is_norm(child.norm1):
                new = Pointwise(child.conv, _affine(child.norm1), relu=True)
            elif suits_winograd(child) and not isinstance(parent, Block):
                assert isinstance(child, nn.Conv2d)
                new = WinogradConv2d(child)
            else:
                continue
            setattr(parent, name, new)


class SumConv2d(nn.Conv2d):
    """A `ChannelSum` as 1x1 convolution with weights of 0 and 1, for runtimes with slow kernels for strided slices.

    Args:
        k: Number of channels to add.
        channels: Number of input channels.
    """

    def __init__(self, k: int, channels: int) -> None:
        super().__init__(channels, channels // k, 1, bias=False)
        weight = torch.eye(channels // k).repeat_interleave(k, 1)[:, :, None, None]
        self.weight = nn.Parameter(weight, requires_grad=False)


def convolve_sums(network: nn.Module) -> None:
    """Replace the channel reductions of FishNets in a network, in place."""
    for block in list(network.modules()):
        if isinstance(block, Block) and isinstance(block.reduce, ChannelSum):
            block.reduce = SumConv2d(block.reduce.k, block.conv1.in_channels).to(block.conv1.weight).eval()


def _fused(part: nn.Module) -> nn.Module:
    return Pointwise(part.conv, _affine(part.norm)) if type(part) is Projection and _is_norm(part.norm) else part


def _is_folded(norm: nn.Module) -> bool:
    return isinstance(norm, nn.Identity)


def _is_norm(norm: nn.Module) -> bool:
    return isinstance(norm, Norm) and norm.running_mean is not None and not list(norm.children())


def _affine(norm: nn.Module) -> Affine:
    assert isinstance(norm, Norm)
    return affine_of(norm)
