"""BatchNorm over the batches of all processes, on CPUs and GPUs alike."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from fishnet.models.distributed import world_size
from fishnet.models.norms import gradients_with_fixed_statistics


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with statistics over the batches of all processes.

    For the norms that are trained beside a backbone with frozen ones: in detection, one device has too few images for
    statistics of its own. With one process it equals `nn.BatchNorm2d`. Forward and backward pass communicate once each.
    """

    FEWEST: ClassVar[int] = 0
    """With fewer values per channel in training, the running statistics are used."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized maps (N, C, H, W)."""
        if not self.training:
            return super().forward(input)
        if world_size() == 1:
            few = input.numel() // input.shape[1] < self.FEWEST
            return self._by_running_statistics(input) if few else super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            found = _shared_statistics(input.detach())
            if self.FEWEST and float(found.values) < self.FEWEST:
                return self._by_running_statistics(input)
            self._follow(found.mean, found.variance * found.values / (found.values - 1))
            y: Tensor = _Normalized.apply(input, self.weight, self.bias, found, self.eps)
            return y

    def _by_running_statistics(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics with those of a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Statistics(NamedTuple):
    """Statistics of the maps of all processes."""

    values: Tensor
    """Number of values per channel, float64 (1,)."""
    mean: Tensor
    """Mean of each channel (C,)."""
    variance: Tensor
    """Variance of each channel (C,), without Bessel's correction."""


def _shared_statistics(x: Tensor) -> _Statistics:
    """Return the statistics of maps (N, C, H, W)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    own = x.numel() // x.shape[1]
    mean = variance = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    if own:
        mean, variance = torch.batch_norm_update_stats(x, mean, torch.ones_like(mean), momentum=0.0)
    mean = mean.double()  # else the difference of squares below would cancel
    sums = own * torch.stack([torch.ones_like(mean), mean, variance.double() + mean.square()])
    torch.distributed.all_reduce(sums)
    count, mean, square = sums[0], *(sums[1:] / sums[0].clamp(min=1))
    variance = (square - mean.square()).clamp(min=0)
    return _Statistics(count[:1], mean.to(dtype), variance.to(dtype))


class _Context(FunctionCtx):
    """What the forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    eps: float


class _Normalized(torch.autograd.Function):
    """Maps, weight, bias, statistics and eps -> normalized maps; the gradient takes into account that the statistics
    depend on the maps of all processes."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor, statistics: _Statistics, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, *statistics)
        ctx.eps = eps
        if not x.numel():  # the kernels of PyTorch divide by zero
            return x.clone()
        return F.batch_norm(x, statistics.mean, statistics.variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, variance = ctx.saved_tensors
        by_weight = by_bias = torch.zeros_like(weight)
        if x.numel():
            wanted = [False, True, True]
            _, by_weight, by_bias = gradients_with_fixed_statistics(
                gradient, x, weight, mean, variance, ctx.eps, wanted
            )
        sums = torch.stack([by_weight, by_bias]).double()
        torch.distributed.all_reduce(sums)
        along, level = (sums / count.clamp(min=1)).to(mean.dtype)
        # the gradient by x is scale (g - mean of g - (x - mean) mean of (g x) / std), as one weighted sum of g and x
        deviation = (variance + ctx.eps).rsqrt()
        scale = weight * deviation
        slope = -scale * deviation * along
        constant = -scale * level - slope * mean
        shape = (1, -1, 1, 1)
        by_x = torch.addcmul(constant.view(shape), x.to(mean.dtype), slope.view(shape))
        by_x.addcmul_(gradient.to(mean.dtype), scale.view(shape))
        return by_x.to(x.dtype), by_weight, by_bias, None, None
