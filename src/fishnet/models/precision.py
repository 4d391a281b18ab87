"""Operations that must run in full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import SupportsIndex

import torch
from torch import Tensor, nn

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the processor by the names of Linux; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return frozenset()
    lines = text.splitlines()
    return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions (AVX-512 bf16, AMX, or those of Arm)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context that computes in fp32, bf16 or fp16 on a device."""
    return torch.autocast(device.type, _HALF[precision]) if precision in _HALF else nullcontext()


class FullPrecision(nn.Module):
    """Base of the layers that `guard_bf16_on_cpu` keeps in fp32: `_guarded(kind)` derives from it and from `kind`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the layer, in fp32, even under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            output: Tensor = super().forward(input.float())
        return output

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Copy and pickle by the class that is guarded: the derived one has no name in a module."""
        return _empty, (type(self).__bases__[-1],), self.__dict__


class FullPrecisionNorm(FullPrecision):
    """A norm that computes in fp32 and returns the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized input."""
        return super().forward(input).to(input.dtype)


def guard_bf16_on_cpu(model: nn.Module) -> nn.Module:
    """Keep layers whose gradients are wrong under bf16 autocast on CPUs in fp32; changes the network in place.

    The classes of these layers are replaced; names, parameters and results in fp32 stay. They are, with measurements in
    `tests/models/test_precision.py`:

    - dilated convolutions, such as those in the body of a FishNet. oneDNN's kernel for the weight gradient of one in
      channels-last memory (CPUs with AVX-512 bf16) returns wrong values where the number of input channels is not a
      multiple of 16, and writes past its buffers with groups: a relative error above 1 against fp32.
    - layer norms of PyTorch and timm. Their weight and bias gradients are summed up in bf16, on any CPU, and such a sum
      stops growing after some hundred items: with 25,000 tokens a bias gradient has a seventh of its size. Other norms
      (BatchNorm, GroupNorm, RMSNorm) sum up in fp32.
    """
    for module in model.modules():
        dilated = isinstance(module, nn.Conv2d) and max(module.dilation) > 1
        if (dilated or isinstance(module, nn.LayerNorm)) and not isinstance(module, FullPrecision):
            module.__class__ = _guarded(type(module))
    return model


_classes: dict[type[nn.Module], type[nn.Module]] = {}
"""The class that takes the place of each class of layers."""


def _guarded(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers in fp32, the same one each time."""
    if kind not in _classes:
        base = FullPrecisionNorm if issubclass(kind, nn.LayerNorm) else FullPrecision
        _classes[kind] = type(f"FullPrecision{kind.__name__}", (base, kind), {})
    return _classes[kind]


def _empty(kind: type[nn.Module]) -> nn.Module:
    """Return a guarded layer without content, which a copy or a pickle fills."""
    guarded = _guarded(kind)
    return guarded.__new__(guarded)
