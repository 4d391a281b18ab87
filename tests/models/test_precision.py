"""bf16 training on a CPU computes the gradients of fp32, up to its rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fishnet.models import create_model
from fishnet.models.precision import guard_bf16_on_cpu


def gradients(conv: nn.Module, images: Tensor, bf16: bool) -> tuple[Tensor, ...]:
    """Return the gradients of input and weight for one fixed gradient of the output."""
    images = images.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = conv(images)
    back = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(out, (images, conv.weight), back.to(out.dtype))


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value.float() - exact).norm() / exact.norm())


# without the guard a gradient of fishnet_tiny is garbage on CPUs with AVX-512 bf16, and fishnext may end the process
@pytest.mark.parametrize("name", ["fishnet_nano", "fishnet_tiny", "fishnext150"])
def test_every_convolution_has_the_gradients_of_fp32(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).to(memory_format=torch.channels_last)
    guarded = dict(guard_bf16_on_cpu(copy.deepcopy(model)).named_modules())
    seen: set[str] = set()
    for key, exact in model.named_modules():
        if not isinstance(exact, nn.Conv2d) or repr(exact) in seen or exact.kernel_size == (1, 1):
            continue
        seen.add(repr(exact))
        #        assert isinstance(guarded[key], FullPrecisionConv2d) == (exact.dilation[0] > 1)
        images = torch.randn(2, exact.in_channels, 56, 64)
        wanted, found = gradients(exact, images, bf16=False), gradients(guarded[key], images, bf16=True)
        for what, one, other in zip(("input", "weight"), found, wanted, strict=True):
            assert relative(one, other) < 0.02, f"{key}: gradient of the {what}"


def test_the_guard_changes_no_names_and_no_fp32_output() -> None:
    model = create_model("fishnet_nano").eval()
    guarded = guard_bf16_on_cpu(copy.deepcopy(model))
    assert list(model.state_dict()) == list(guarded.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(model(images), guarded(images))
