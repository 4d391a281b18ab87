"""Recomputation in the backward pass: BatchNorm with ReLU, and max-pools that keep two bytes per value.

A convolution keeps its input for the backward pass. In a pre-activation network that input is ReLU(BN(x)), and the
BatchNorm keeps x too. Here only x is kept: one scale and shift per channel give the input again, on CPUs bit for bit.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from fishnet.models.norms import gradients_with_fixed_statistics


class _Node(FunctionCtx):
    """Tensors that BatchNorm with ReLU saves for the backward pass, and temporary values used in it."""

    batch_statistics: bool
    eps: float
    output: Tensor | None
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor] | None
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]


class _PoolNode(FunctionCtx):
    """Tensors that a max-pool saves for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    window: tuple[int, int, int]
    shape: torch.Size
    order: torch.memory_format


class _Scratch(threading.local):
    """Memory for the output of a norm, which is only used by the following convolution.

    Allocating it for every norm would fragment the heap, and the process would need twice the memory of its tensors.
    """

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.owner: object = None

    def like(self, x: Tensor, owner: object) -> Tensor | None:
        """Return an uninitialized tensor in the shared buffer, valid until the next call; None unless x is on a CPU."""
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type != "cpu" or not dense:
            return None
        size = x.numel() * x.element_size()
        if self.buffer.numel() < size:
            self.buffer = torch.empty(size, dtype=torch.uint8)
        self.owner = owner
        return x.new_empty(0).set_(self.buffer.untyped_storage(), 0, x.shape, x.stride())


_scratch = _Scratch()


class _Settings(NamedTuple):
    """What BatchNorm takes besides its input, in PyTorch's order."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    batch_statistics: bool
    momentum: float
    eps: float


def _normalized(x: Tensor, out: Tensor | None, settings: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Return ReLU(BN(x)) in `out`, if it is given, with the mean and the inverse deviation of the batch."""
    if out is None:
        y, mean, spread = torch.native_batch_norm(x, *settings)
    else:
        like = next((value for value in settings[:4] if value is not None), x)
        mean, spread = like.new_empty(0), like.new_empty(0)
        y, mean, spread = torch.native_batch_norm(x, *settings, out=(out, mean, spread))
    return y.relu_(), mean, spread


class _NormRelu(torch.autograd.Function):
    """ReLU(BN(x)), which keeps x only."""

    @staticmethod
    def forward(
        ctx: _Node, x: Tensor, weight: Tensor | None, bias: Tensor | None, settings: _Settings, passing: bool
    ) -> Tensor:
        out = _scratch.like(x, None) if passing else None
        y, mean, spread = _normalized(x, out, settings)
        if not settings.batch_statistics:
            assert settings.mean is not None
            assert settings.variance is not None
            mean, spread = settings.mean, settings.variance
        ctx.save_for_backward(x, weight, bias, mean, spread)  # type: ignore[arg-type]  # takes None
        ctx.batch_statistics, ctx.eps = settings.batch_statistics, settings.eps
        ctx.output = ctx.inputs = None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: _Node, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y = _output_of(ctx)
        assert ctx.inputs is not None
        x, weight, _, mean, spread = ctx.inputs
        ctx.output = ctx.inputs = None
        if y.dtype == gradient.dtype and y.stride() == gradient.stride():
            gradient = torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=y)
        else:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        wanted = [ctx.needs_input_grad[0], weight is not None, weight is not None]
        if not ctx.batch_statistics:
            return (*gradients_with_fixed_statistics(gradient, x, weight, mean, spread, ctx.eps, wanted), None, None)
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, spread, True, ctx.eps, wanted
        )
        return (*found, None, None)


def _output_of(node: _Node) -> Tensor:
    """Return the output again; it is kept until the backward pass of the node, unless another node needs the memory."""
    if node.output is None or _scratch.owner is not node:
        if node.inputs is None:
            node.inputs = node.saved_tensors  # read once: under activation checkpointing it cannot be read twice
        x, weight, bias, mean, spread = node.inputs
        out = _scratch.like(x, node)
        if node.batch_statistics:
            # PyTorch multiplies by weight / deviation; as weight of a norm with deviation 1 it gives the same product
            scale = spread if weight is None else spread * weight
            settings = _Settings(scale, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)
        else:
            settings = _Settings(weight, bias, mean, spread, False, 0.0, node.eps)
        node.output = _normalized(x, out, settings)[0]
    return node.output


def after_norm_relu(norm: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """Return module(ReLU(norm(x))); only x is kept for the backward pass, which recomputes the rest.

    Norms that exchange statistics between processes are not recomputed; their outputs are kept.

    Args:
        norm: BatchNorm or group norm.
        module: Convolution, or a ReLU, which changes nothing more.
        x: Maps (N, C, H, W).
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta:
        return plain(norm, module, x)
    if type(norm) is not nn.BatchNorm2d:
        if isinstance(norm, nn.GroupNorm):  # without statistics of its own
            return checkpoint(plain, norm, module, x, use_reentrant=False, preserve_rng_state=False)
        return plain(norm, module, x)
    if not any(tensor is not None and tensor.requires_grad for tensor in (x, norm.weight, norm.bias)):
        return plain(norm, module, x)  # the backward pass does not come here, and the module keeps its input
    passing = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)  # a ReLU returns its input
    y = _NormRelu.apply(x, norm.weight, norm.bias, _settings(norm), passing)
    pointer, shape, dtype = y.data_ptr(), y.shape, y.dtype
    node: _Node = y.grad_fn
    weight = getattr(module, "weight", None)
    casts = weight is None or weight.shape != shape  # else a cast input would look like a cast weight

    def pack(tensor: Tensor) -> Tensor | torch.dtype:
        if tensor.shape == shape and (tensor.data_ptr() == pointer if tensor.dtype == dtype else casts):
            return tensor.dtype
        return tensor

    def unpack(kept: Tensor | torch.dtype) -> Tensor:
        return kept if isinstance(kept, Tensor) else _output_of(node).to(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return module(y)


def plus(y: Tensor, shortcut: Tensor) -> Tensor:
    """Return y + shortcut in the memory of y, whose values are overwritten."""
    return y.add_(shortcut) if y.dtype == shortcut.dtype else y + shortcut


def plain(norm: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """Return module(ReLU(norm(x)))."""
    if isinstance(module, nn.ReLU):  # a second one in place would overwrite the output that the first one keeps
        return module(norm(x))
    return module(F.relu(norm(x), inplace=True))


def _settings(norm: nn.BatchNorm2d) -> _Settings:
    """Return the settings of a BatchNorm for one batch, and count the batch."""
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    running = norm.running_mean, norm.running_var
    if norm.training and not norm.track_running_stats:
        running = None, None
    batch_statistics = norm.training or norm.running_mean is None
    return _Settings(norm.weight, norm.bias, *running, batch_statistics, momentum or 0.0, norm.eps)


class _MaxPool(torch.autograd.Function):
    """Maximum over windows, which keeps where the maxima are, in two bytes each, and not the map itself."""

    @staticmethod
    def forward(ctx: _PoolNode, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        y, places = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
        ctx.save_for_backward((places - _corners(places, x.shape, stride)).to(torch.int16))
        ctx.window, ctx.shape = (kernel, stride, padding), x.shape
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.order = torch.channels_last if last else torch.contiguous_format
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: _PoolNode, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (offsets,) = ctx.saved_tensors
        kernel, stride, padding = ctx.window
        # only shape and memory order are read: on a CPU, untouched memory is not allocated
        like = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.order)
        places = offsets + _corners(offsets, ctx.shape, stride)
        window = [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1]
        found = torch.ops.aten.max_pool2d_with_indices_backward(gradient, like, *window, False, places)
        return found, None, None, None


def _corners(places: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """Return, for every window of a pool, the place of a pixel near it in the flattened map."""
    rows = torch.arange(places.shape[2], device=places.device) * (stride * shape[3])
    return rows[:, None] + torch.arange(places.shape[3], device=places.device) * stride


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` over square windows that keeps less for the backward pass if `recompute` is set.

    (N, C, H, W) -> (N, C, H', W')
    """

    def __init__(self, kernel_size: int, stride: int, padding: int = 0) -> None:
        super().__init__(kernel_size, stride, padding)
        self.recompute, self.window = False, (kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        """Return the maxima."""
        if self.recompute and not torch.jit.is_scripting():
            return self.compact(input)
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding)

    @torch.jit.ignore
    def compact(self, x: Tensor) -> Tensor:
        """Return the maxima, keeping little for the backward pass."""
        window = self.window
        if not (torch.is_grad_enabled() and x.requires_grad) or torch.compiler.is_compiling() or x.is_meta:
            return F.max_pool2d(x, *window)
        pooled: Tensor = _MaxPool.apply(x, *window)
        return pooled
