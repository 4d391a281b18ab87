"""Stages of FishNet: stem, tail, bridge, body (upsampling) and head (downsampling with refinement).

A stage runs its blocks, then resamples, then concatenates the transferred skip: trunk first, skip second.
TorchScript compiles this module, so annotations stay evaluated.
"""
# ruff: noqa: D102 (the docstring of a module is that of its forward)

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fishnet.models.blocks import (
    Block,
    DeconvUp,
    Device,
    FactoryKwargs,
    Gate,
    Recomputing,
    check_norm_input,
    make_down,
)
from fishnet.models.config import SKIPS, STAGES, FishConfig, Memory
from fishnet.models.recompute import MaxPool2d, after_norm_relu


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics unchanged, so that recomputing a stage does not count its batch twice."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


class Stage(nn.Module):
    """Base class of stages; with `grad_checkpointing`, activations are recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    @torch.jit.ignore
    def recomputed(self, run: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
        """Return `run(*inputs)`, keeping only the inputs for the backward pass."""
        if torch.compiler.is_compiling():  # the compiler has its own recomputation, without a context
            return checkpoint(run, *inputs, use_reentrant=False)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(self)))


def _blocks(
    config: FishConfig,
    before: str,
    widths: tuple[int, int],
    rates: list[float],
    dilation: int = 1,
    reduction: str = "",
    **dd: Unpack[FactoryKwargs],
) -> nn.Sequential:
    """Return one block per drop-path rate, at the resolution of the stage `before`; the first changes the width."""
    in_channels, width = widths
    middle = config.middle_width(width)
    blocks = []
    for rate in rates:
        blocks.append(
            Block(
                in_channels,
                width,
                middle,
                config.groups(middle),
                dilation * config.dilation_after(before),
                reduction,
                rate,
                **dd,
            )
        )
        in_channels = width
    return nn.Sequential(*blocks)


def _transfer(config: FishConfig, name: str, rates: list[float], **dd: Unpack[FactoryKwargs]) -> nn.Sequential:
    """Return the residual blocks on the skip into stage `name`."""
    skip = SKIPS[name]
    width = config.channels[skip]
    depth = config.transfer_depths[list(SKIPS).index(name)]
    return _blocks(config, skip, (width, width), [rates[-1]] * depth, **dd)


def _down(config: FishConfig, name: str, channels: int, **dd: Unpack[FactoryKwargs]) -> nn.Module:
    before = STAGES[STAGES.index(name) - 1]
    if config.strides[before] == config.strides[name]:
        return nn.Identity()
    return make_down(config.downsample, channels, **dd)


class Stem(Stage):
    """Three 3x3 convolutions with BN and ReLU, then a 3x3 max-pool of stride 2.

    (N, in_chans, H, W) -> (N, stem_width, H/s, W/s), rounded up, s = stem_stride. With s = 2 there is no
    pool; with s = 1 the first convolution has stride 1 as well. `convs` returns the map before the pool.
    """

    def __init__(
        self, config: FishConfig, in_chans: int = 3, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.recompute = False
        width, half = config.stem_width, config.stem_width // 2
        stride = config.strides["stem_conv"]
        self.conv1 = nn.Conv2d(in_chans, half, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(half, **dd)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(half, **dd)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False, **dd)
        self.norm3 = nn.BatchNorm2d(width, **dd)
        self.relu = nn.ReLU(inplace=True)
        self.pool = MaxPool2d(3, 2, padding=1) if config.stem_stride == 4 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.convs(x))

    def convs(self, x: Tensor) -> Tensor:
        """Return the map before the pool."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.recomputed(self.run, [x])
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Return the map before the pool, without recomputation of all of it."""
        if self.recompute and not torch.jit.is_scripting():
            return self.lean(x)
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)
        return self.relu(self.norm3(self.conv3(x)))

    @torch.jit.ignore
    def lean(self, x: Tensor) -> Tensor:
        """Return the map before the pool; outputs of the norms are computed again in the backward pass."""
        x = after_norm_relu(self.norm1, self.conv2, self.conv1(x))
        x = after_norm_relu(self.norm2, self.conv3, x)
        return after_norm_relu(self.norm3, self.relu, x)


class TailStage(Stage):
    """t(x) = down(blocks(x)): (N, C, H, W) -> (N, C', H/2, W/2), rounded down (up for 3x3 pool and convolution)."""

    def __init__(self, config: FishConfig, name: str, rates: list[float], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        before = STAGES[STAGES.index(name) - 1]
        width = config.channels[name]
        self.blocks = _blocks(config, before, (config.channels[before], width), rates, **dd)
        self.down = _down(config, name, width, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.recomputed(self.run, [x])
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Run the stage without recomputation."""
        return self.down(self.blocks(x))


class Bridge(Stage):
    """u(x) = v2 * n2(v1 * n1(x)), a = gate(u), out = a blocks(u) + a; without the gate out = blocks(u).

    (N, C, H, W) -> (N, C, H, W); v1 has C/2 output channels, v2 has 2 C and a bias.
    """

    def __init__(
        self, config: FishConfig, rates: list[float], device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        width = config.bridge_width
        self.norm1 = nn.BatchNorm2d(width, **dd)
        self.conv1 = nn.Conv2d(width, width // 2, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(width // 2, **dd)
        self.conv2 = nn.Conv2d(width // 2, 2 * width, 1, **dd)
        self.gate = Gate(2 * width, config.gate_width, width, **dd) if config.gate else None
        self.blocks = _blocks(config, "bridge", (2 * width, width), rates, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            check_norm_input(x, self.norm1)
            if self.grad_checkpointing:
                return self.recomputed(self.run, [x])
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Run the stage without recomputation."""
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        x = self.conv2(F.relu(self.norm2(x), inplace=True))
        y = self.blocks(x)
        if self.gate is not None:
            a = self.gate(x)
            y = y * a + a
        return y


class BodyStage(Stage):
    """b(x, s) = [up(blocks(x)), transfer(s)]: (N, C, H, W), (N, S, H', W') -> (N, C' + S, H', W').

    The first block sums neighboring channels if x has more channels than the stage; x is upsampled to the size of s.
    """

    def __init__(self, config: FishConfig, name: str, rates: list[float], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        before, index = STAGES[STAGES.index(name) - 1], STAGES.index(name) - STAGES.index("b1")
        width = config.body_widths[index]
        dilation = config.dilations[index] if config.dilation else 1
        widths = (config.channels[before], width)
        self.blocks = _blocks(config, before, widths, rates, dilation, config.reduction, **dd)
        self.transfer = _transfer(config, name, rates, **dd)
        self.resize = config.strides[before] != config.strides[name]
        deconv = self.resize and config.upsample == "deconv"
        self.up = DeconvUp(width, **dd) if deconv else nn.Identity()
        self.mode = "bilinear" if config.upsample == "bilinear" else "nearest"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.recomputed(self.run, [x, skip])
        return self.run(x, skip)

    def run(self, x: Tensor, skip: Tensor) -> Tensor:
        """Run the stage without recomputation."""
        x = self.blocks(x)
        if self.resize:
            x = F.interpolate(self.up(x), size=skip.shape[-2:], mode=self.mode)
        return torch.cat([x, self.transfer(skip)], dim=1)


class HeadStage(Stage):
    """h(x, s) = [down(blocks(x)), transfer(s)]: (N, C, H, W), (N, S, H', W') -> (N, C + S, H', W')."""

    def __init__(self, config: FishConfig, name: str, rates: list[float], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        before = STAGES[STAGES.index(name) - 1]
        width = config.channels[before]
        self.blocks = _blocks(config, before, (width, width), rates, **dd)
        self.transfer = _transfer(config, name, rates, **dd)
        self.down = _down(config, name, width, **dd)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.recomputed(self.run, [x, skip])
        return self.run(x, skip)

    def run(self, x: Tensor, skip: Tensor) -> Tensor:
        """Run the stage without recomputation."""
        return torch.cat([self.down(self.blocks(x)), self.transfer(skip)], dim=1)


class Tail(nn.Module):
    """Plain backbone: output of the stem -> t1, t2, t3, each at half the resolution of the previous one."""

    def __init__(self, config: FishConfig, rates: list[list[float]], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        self.t1 = TailStage(config, "t1", rates[0], **dd)
        self.t2 = TailStage(config, "t2", rates[1], **dd)
        self.t3 = TailStage(config, "t3", rates[2], **dd)

    def forward(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t1 = self.t1(stem)
        t2 = self.t2(t1)
        return t1, t2, self.t3(t2)


class Body(nn.Module):
    """Upsampling part: bridge and maps of the tail -> b1, b2, b3, each at twice the resolution of the previous one."""

    def __init__(self, config: FishConfig, rates: list[list[float]], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        self.b1 = BodyStage(config, "b1", rates[0], **dd)
        self.b2 = BodyStage(config, "b2", rates[1], **dd)
        self.b3 = BodyStage(config, "b3", rates[2], **dd)

    def forward(self, bridge: Tensor, t2: Tensor, t1: Tensor, stem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b1 = self.b1(bridge, t2)
        b2 = self.b2(b1, t1)
        return b1, b2, self.b3(b2, stem)


class Head(nn.Module):
    """Downsampling part: b3 and maps of body and bridge -> h1, h2, h3, or fewer if the head was pruned."""

    def __init__(self, config: FishConfig, rates: list[list[float]], **dd: Unpack[FactoryKwargs]) -> None:
        super().__init__()
        self.h1 = HeadStage(config, "h1", rates[0], **dd)
        self.h2 = HeadStage(config, "h2", rates[1], **dd)
        self.h3 = HeadStage(config, "h3", rates[2], **dd)

    def forward(self, b3: Tensor, b2: Tensor, b1: Tensor, bridge: Tensor, depth: int = 3) -> list[Tensor]:
        """Return the outputs of the first `depth` stages."""
        outputs = [self.h1(b3, b2)]
        if hasattr(self, "h2") and depth > 1:
            outputs.append(self.h2(outputs[0], b1))
            if hasattr(self, "h3") and depth > 2:
                outputs.append(self.h3(outputs[1], bridge))
        return outputs


def set_memory(module: nn.Module, memory: Memory) -> None:
    """Set which activations the stages in a module keep for the backward pass.

    Args:
        module: FishNet, or a part of one.
        memory: `fast`: everything. `balanced`: not the outputs of BatchNorms and the inputs of max-pools. `saver`: of
            every stage its input only; in the backward pass it runs again, and then keeps what `balanced` keeps.
    """
    for part in module.modules():
        if isinstance(part, Stage):
            part.grad_checkpointing = memory == "saver"
        if isinstance(part, Recomputing | Stem | MaxPool2d):
            part.recompute = memory != "fast"
