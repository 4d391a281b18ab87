"""Operations that must run in full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

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


class FullPrecisionConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in fp32 even under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input, in fp32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def guard_bf16_on_cpu(model: nn.Module) -> nn.Module:
    """Keep the dilated convolutions of a network in fp32 under bf16 autocast on CPUs; changes the network in place.

    oneDNN's kernel for the weight gradient of a dilated bf16 convolution in channels-last memory (CPUs with AVX-512
    bf16) returns wrong values where the number of input channels is not a multiple of 16, and writes past its buffers
    with groups: measured as a relative error above 1 against fp32, see `tests/models/test_precision.py`. The body of a
    FishNet has dilated convolutions.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and max(child.dilation) > 1:
                setattr(module, name, _in_full_precision(child))
    return model


def _in_full_precision(conv: nn.Conv2d) -> FullPrecisionConv2d:
    with torch.device("meta"):
        guarded = FullPrecisionConv2d(
            conv.in_channels,
            conv.out_channels,
            kernel_size=conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
    guarded.weight, guarded.bias = conv.weight, conv.bias
    return guarded.train(conv.training)
