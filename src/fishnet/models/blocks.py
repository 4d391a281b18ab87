"""Modules of FishNet: residual block, channel reduction, resampling, gate. The docstrings give the formulas.

Notation: n(x) = ReLU(BN(x)), each with its own parameters; `*` is a convolution without bias.
TorchScript compiles this module, so annotations stay evaluated.
"""
# ruff: noqa: D102 (the docstring of a module is that of its forward)

from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from fishnet.models.config import FishInputError
from fishnet.models.recompute import MaxPool2d, after_norm_relu, plus

# ReLU is in place throughout: its input is always the output of a norm that does not need it in the backward pass.

Device = torch.device | str | int | None


class FactoryKwargs(TypedDict, total=False):
    """Where and in which dtype a module creates its tensors, as in PyTorch's own modules."""

    device: Device
    dtype: torch.dtype | None


class Recomputing(nn.Module):
    """Base class of modules that compute ReLU(BN(x)) again in the backward pass if `recompute` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    @torch.jit.ignore
    def recomputed(self, norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
        """Return conv(ReLU(norm(x))), keeping only x for the backward pass."""
        return after_norm_relu(norm, conv, x)

    @torch.jit.ignore
    def sum(self, y: Tensor, shortcut: Tensor) -> Tensor:
        """Return the sum in the memory of y, which leaves no hole between the maps that are kept."""
        return plus(y, shortcut)


class Projection(Recomputing):
    """Shortcut of a block that changes the number of channels: p(x) = w * n(x), a 1x1 convolution.

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(
        self, in_channels: int, out_channels: int, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, **dd)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and not torch.jit.is_scripting():
            return self.recomputed(self.norm, self.conv, x)
        return self.conv(F.relu(self.norm(x), inplace=True))


class ChannelSum(nn.Module):
    """Channel reduction without parameters: r(x)[n] = x[k n] + ... + x[k n + k - 1].

    (N, k C, H, W) -> (N, C, H, W)
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        # Strided slices keep channels-last memory and are several times faster than a sum over a dimension of length k.
        y = x[:, :: self.k]
        for j in range(1, self.k):
            y = y + x[:, j :: self.k]
        return y

    def extra_repr(self) -> str:
        """Return k for the printed representation."""
        return f"k={self.k}"


class Block(Recomputing):
    """Pre-activation bottleneck: f(x) = s(x) + w3 * n3(w2 * n2(w1 * n1(x))), w1 and w3 1x1, w2 3x3.

    s is the identity; if the number of channels changes, a `Projection` (`shortcut`) or, in the first block of a body
    stage, the channel reduction (`reduce`): `ChannelSum`, or a `Projection` for the 1x1 ablation.

    (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle: int,
        groups: int = 1,
        dilation: int = 1,
        reduction: str = "",
        drop_path: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels, **dd)
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(middle, **dd)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=dilation, dilation=dilation, groups=groups, bias=False, **dd)
        self.norm3 = nn.BatchNorm2d(middle, **dd)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        self.reduce: nn.Module = nn.Identity()
        if in_channels != out_channels:
            if reduction == "sum":
                self.reduce = ChannelSum(in_channels // out_channels)
            elif reduction == "conv1x1":
                self.reduce = Projection(in_channels, out_channels, **dd)
            else:
                self.shortcut = Projection(in_channels, out_channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and not torch.jit.is_scripting():
            y = self.recomputed(self.norm1, self.conv1, x)
            y = self.recomputed(self.norm2, self.conv2, y)
            y = self.recomputed(self.norm3, self.conv3, y)
            return self.sum(self.drop_path(y), self.reduce(self.shortcut(x)))
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        y = self.conv2(F.relu(self.norm2(y), inplace=True))
        y = self.conv3(F.relu(self.norm3(y), inplace=True))
        return self.drop_path(y) + self.reduce(self.shortcut(x))


class Gate(nn.Module):
    """Channel attention of the bridge: a = sigmoid(v2 ReLU(v1 m)), where m is the mean of n(x) over the map.

    v1 and v2 are 1x1 convolutions with bias.

    (N, in_channels, H, W) -> (N, out_channels, 1, 1)
    """

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, **dd)
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, **dd)
        self.conv2 = nn.Conv2d(hidden, out_channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        m = F.adaptive_avg_pool2d(F.relu(self.norm(x), inplace=True), 1)
        return torch.sigmoid(self.conv2(F.relu(self.conv1(m), inplace=True)))


class ConvDown(Recomputing):
    """Downsampling ablation: d(x) = w * n(x), a 3x3 convolution of stride 2.

    (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2))
    """

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **dd)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and not torch.jit.is_scripting():
            return self.recomputed(self.norm, self.conv, x)
        return self.conv(F.relu(self.norm(x), inplace=True))


class DeconvUp(Recomputing):
    """Upsampling ablation: u(x) = w^T * n(x), a 2x2 transposed convolution of stride 2.

    (N, C, H, W) -> (N, C, 2 H, 2 W)
    """

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **dd)
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and not torch.jit.is_scripting():
            return self.recomputed(self.norm, self.conv, x)
        return self.conv(F.relu(self.norm(x), inplace=True))


def make_down(kind: str, channels: int, **dd: Unpack[FactoryKwargs]) -> nn.Module:
    """Return the module that halves height and width of a map: `max2`, `max3`, `avg` or `conv`."""
    if kind == "conv":
        return ConvDown(channels, **dd)
    pools = {"max2": MaxPool2d(2, 2), "max3": MaxPool2d(3, 2, padding=1), "avg": nn.AvgPool2d(2)}
    return pools[kind]


def check_norm_input(x: Tensor, norm: nn.Module) -> None:
    """Check that a training BatchNorm gets more than one value per channel; PyTorch's own message is less clear.

    Raises:
        FishInputError: `norm` uses batch statistics and `x` has one value per channel.
    """
    if isinstance(x, torch.fx.Proxy) or type(norm) is not nn.BatchNorm2d or not norm.training:
        return
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise FishInputError(
            "BatchNorm cannot train on one image whose smallest map is 1x1 (one value per channel): raise the batch "
            "size to 2 or more, use larger images, or freeze BatchNorm"
        )
