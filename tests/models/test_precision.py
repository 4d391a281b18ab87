"""bf16 training on a CPU computes the gradients of fp32, up to its rounding, with and without bf16 instructions."""

from __future__ import annotations

import copy
import io

import pytest
import timm.layers
import torch
from timm.layers.norm import LayerNormExp2d
from timm.models.metaformer import LayerNorm2dNoBias, LayerNormNoBias
from torch import Tensor, nn

from fishnet.models import create_model
from fishnet.models.precision import FullPrecision, guard_bf16_on_cpu


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
        assert isinstance(guarded[key], FullPrecision) == (exact.dilation[0] > 1)
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


CHANNELS = 16
NORMS = {
    "layer": nn.LayerNorm(CHANNELS),
    "layer of timm": timm.layers.LayerNorm(CHANNELS),
    "layer 2d": timm.layers.LayerNorm2d(CHANNELS),
    "layer exp 2d": LayerNormExp2d(CHANNELS),
    "layer in fp32": timm.layers.LayerNormFp32(CHANNELS),
    "layer and activation": timm.layers.LayerNormAct(CHANNELS, act_layer=nn.GELU),
    "layer 2d and activation": timm.layers.LayerNormAct2d(CHANNELS, act_layer=nn.GELU),
    "layer without bias": LayerNormNoBias(CHANNELS),
    "layer 2d without bias": LayerNorm2dNoBias(CHANNELS),
    "RMS": timm.layers.RmsNorm(CHANNELS),
    "RMS of PyTorch": nn.RMSNorm(CHANNELS),
    "RMS 2d": timm.layers.RmsNorm2d(CHANNELS),
    "group": timm.layers.GroupNorm(CHANNELS, num_groups=4),
    "one group": timm.layers.GroupNorm1(CHANNELS),
    "batch": timm.layers.BatchNormAct2d(CHANNELS),
}


def norm_gradients(norm: nn.Module, features: Tensor, bf16: bool) -> dict[str, Tensor]:
    """Return the gradients of the parameters for gradients of the output that have a mean, as those of a loss have."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = norm(features)
    back = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) + 0.3
    gradients = torch.autograd.grad(out, list(norm.parameters()), back.bfloat16().to(out.dtype))
    return {name: value for (name, _), value in zip(norm.named_parameters(), gradients, strict=True)}


# without the guard the gradients of layer norms have a relative error of 0.15 to 0.9
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch's RMSNorm under autocast
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_has_the_gradients_of_fp32_over_many_tokens(name: str) -> None:
    torch.manual_seed(0)
    norm = NORMS[name]
    is_map = isinstance(norm, nn.GroupNorm | nn.BatchNorm2d) or "2d" in name
    features = torch.randn((8, CHANNELS, 64, 64) if is_map else (8, 4096, CHANNELS)).bfloat16().requires_grad_()
    wanted = norm_gradients(copy.deepcopy(norm), features.float(), bf16=False)
    network = guard_bf16_on_cpu(nn.Sequential(copy.deepcopy(norm)))
    assert isinstance(network[0], FullPrecision) == ("layer" in name)
    for key, value in norm_gradients(network[0], features, bf16=True).items():
        assert relative(value, wanted[key]) < 0.02, key


def test_guarded_norms_return_the_type_of_their_input() -> None:
    norm = guard_bf16_on_cpu(nn.LayerNorm(CHANNELS))
    features = torch.randn(4, CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(features.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(norm(features), nn.functional.layer_norm(features, (CHANNELS,)))


def test_dilated_convolutions_of_timm_are_guarded() -> None:
    conv = guard_bf16_on_cpu(nn.Sequential(timm.layers.Conv2dSame(8, 8, 3, dilation=2)))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 8, 9, 9)).dtype == torch.float32


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "fishnet_nano"])
def test_a_guarded_network_is_copied_saved_and_compiled(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    names = list(model.state_dict())
    guard_bf16_on_cpu(guard_bf16_on_cpu(model))
    assert any(isinstance(module, FullPrecision) for module in model.modules())
    torch.save(model, buffer := io.BytesIO())
    buffer.seek(0)
    images = torch.randn(1, 3, 160, 160)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(images)
        for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
            assert list(other.state_dict()) == names
            assert torch.equal(other(images), wanted)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(images), wanted)
