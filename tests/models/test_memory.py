"""Memory modes of training: the same gradients and statistics from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fishnet.errors import UsageError
from fishnet.models import create_model
from fishnet.models.build_trunk import build_trunk
from fishnet.models.config import Memory
from fishnet.models.fishnet import FishNet
from fishnet.models.norms import apply_norm_policy
from fishnet.models.precision import guard_bf16_on_cpu
from fishnet.models.recompute import MaxPool2d, after_norm_relu
from fishnet.models.shared_norm import SharedBatchNorm2d
from fishnet.models.stages import set_memory

SPARING = [mode for mode in get_args(Memory) if mode != "fast"]
PLANS = [
    {},
    {"downsample": "max3", "upsample": "deconv"},
    {"downsample": "conv", "upsample": "bilinear", "reduction": "conv1x1"},
    {"stem_stride": 1, "gate": False, "downsample": "avg"},
    {"output_stride": 8},
]


def fish(dtype: torch.dtype = torch.float32, **options: object) -> FishNet:
    torch.manual_seed(0)
    return create_model("fishnet_nano", dtype=dtype, **{"drop_path_rate": 0.3, "zero_init_last": False, **options})


def trained(model: nn.Module, memory: Memory, x: Tensor, steps: int = 2, bf16: bool = False) -> nn.Module:
    """Return a copy of a network after some forward and backward passes in a memory mode."""
    model = copy.deepcopy(model).train()
    set_memory(model, memory)
    for step in range(steps):
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(x).double().square().sum()
        loss.backward()
    return model


def assert_equal(one: nn.Module, other: nn.Module, relative: float = 0.0) -> None:
    """Compare gradients and buffers; without `relative` bit for bit."""
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None
            continue
        assert mine.grad is not None
        assert mine.grad.stride() == theirs.grad.stride(), name
        assert theirs.grad.abs().sum() > 0, name
        assert (mine.grad - theirs.grad).abs().max() <= relative * theirs.grad.abs().max(), name
    for (name, mine), theirs in zip(one.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs), f"{name}: a batch counts once"


@pytest.mark.parametrize("memory", SPARING)
@pytest.mark.parametrize("options", PLANS, ids=str)
def test_gradients_are_those_of_fast(memory: Memory, options: dict[str, object]) -> None:
    for dtype, relative in ((torch.float64, 1e-9), (torch.float32, 0.0)):
        model = fish(dtype, **options).to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 75, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
        assert_equal(trained(model, memory, x), trained(model, "fast", x), relative)


@pytest.mark.parametrize("memory", SPARING)
def test_maps_in_default_memory_order(memory: Memory) -> None:
    model, x = fish(), torch.randn(2, 3, 64, 64)
    assert_equal(trained(model, memory, x), trained(model, "fast", x))


@pytest.mark.parametrize("memory", SPARING)
@pytest.mark.parametrize("name", ["fishnet_nano", "fishnext150"])
def test_bf16(memory: Memory, name: str) -> None:
    """Convolutions that stay in fp32 get inputs in bf16 and give outputs in fp32."""
    torch.manual_seed(0)
    model = create_model(name, zero_init_last=False).to(memory_format=torch.channels_last)
    guard_bf16_on_cpu(model)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    plain = trained(model, "fast", x, steps=1, bf16=True)
    assert_equal(trained(model, memory, x, steps=1, bf16=True), plain)
    assert kept(model, memory, x, bf16=True) < kept(model, "fast", x, bf16=True)


def hold(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)


def freeze_stem_and_norms(model: FishNet) -> None:
    model.stem.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def unusual(model: nn.Module) -> None:
    """Cumulative averages, no scale and shift, no running statistics: what `nn.BatchNorm2d` can do."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for index, norm in enumerate(norms):
        if index % 3 == 0:
            norm.momentum = None
        elif index % 3 == 1:
            norm.weight, norm.bias, norm.affine = None, None, False
        else:
            norm.running_mean, norm.running_var, norm.num_batches_tracked = None, None, None
            norm.track_running_stats = False


def share(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SharedBatchNorm2d(child.num_features))


@pytest.mark.parametrize("memory", SPARING)
@pytest.mark.parametrize(
    "change", [hold, freeze_stem_and_norms, unusual, share, lambda model: apply_norm_policy(model, "group")]
)
def test_norms_of_every_policy(memory: Memory, change: Callable[[nn.Module], None]) -> None:
    model = fish()
    with torch.no_grad():  # statistics that differ from those of new norms
        model.train()(torch.randn(4, 3, 64, 64))
    change(model)
    x = torch.randn(2, 3, 64, 64)
    plain, sparing = (copy.deepcopy(model) for _ in range(2))
    for mode, network in (("fast", plain), (memory, sparing)):
        set_memory(network, mode)
        for module in network.modules():
            module.training = not isinstance(module, nn.BatchNorm2d) or change is not hold
        for step in range(2):
            torch.manual_seed(step)
            network(x).square().sum().backward()
    assert_equal(sparing, plain)


def kept(model: nn.Module, memory: Memory, x: Tensor, bf16: bool = False) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without parameters."""
    model = copy.deepcopy(model).train()
    set_memory(model, memory)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or the next one could lie in the same place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(x)
    return sum(sizes.values())


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_kept(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = create_model("fishnet150")
    order = torch.channels_last if channels_last else torch.contiguous_format
    model, x = model.to(memory_format=order), torch.randn(2, 3, 64, 64).contiguous(memory_format=order)
    fast, balanced, saver = (kept(model, memory, x) for memory in ("fast", "balanced", "saver"))
    assert balanced < 0.5 * fast
    assert saver < 0.15 * fast


def test_evaluation_and_frozen_networks_keep_nothing() -> None:
    model, x = fish().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    for memory in SPARING:
        set_memory(model, memory)
        with torch.no_grad():
            assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)
    model.requires_grad_(False)
    assert kept(model, "balanced", x) == 0


def test_one_graph_twice() -> None:
    norm, conv, x = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), torch.randn(2, 4, 6, 6, requires_grad=True)
    y = after_norm_relu(norm, conv, x)
    plain = conv(F.relu(copy.deepcopy(norm)(x)))
    assert torch.equal(y, plain)
    inputs, back = [x, *norm.parameters(), *conv.parameters()], torch.randn_like(y)
    first, again = (torch.autograd.grad(y, inputs, back, retain_graph=True) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    weight_only = torch.autograd.grad(y, [conv.weight], back, retain_graph=True)
    assert torch.equal(weight_only[0], first[3])
    assert torch.equal(torch.autograd.grad(y, [x], back)[0], first[0])


def test_an_input_of_the_shape_of_the_weight() -> None:
    """Under autocast the bf16 copy of the one must not be taken for that of the other."""
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)
    found = []
    for run in (after_norm_relu, lambda norm, conv, x: conv(F.relu(norm(x)))):
        x = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(norm, conv, x).float().square().sum()
        found.append(torch.autograd.grad(loss, [x, conv.weight]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 7, 301), (2, 2, 5, 6)])
def test_max_pool(window: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    pool = MaxPool2d(*window)
    pool.recompute = True
    # small integers: windows have several maxima
    x = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    for order in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=order)
        y, expected = pool(given), F.max_pool2d(given, *window)
        assert torch.equal(y, expected)
        back = torch.randn_like(y)
        assert torch.equal(torch.autograd.grad(y, x, back)[0], torch.autograd.grad(expected, x, back)[0])


@pytest.mark.parametrize("memory", SPARING)
def test_timm_networks_recompute_or_say_that_they_cannot(memory: Memory) -> None:
    trunk, _ = build_trunk("resnet18")
    trunk.set_memory(memory)
    assert trunk.backbone.grad_checkpointing
    for name in ("dla34", "inception_v4"):
        trunk, _ = build_trunk(name, taps=None, vector=True)
        trunk.set_memory("fast")
        with pytest.raises(UsageError, match=f"cannot recompute activations: --memory {memory} needs") as error:
            trunk.set_memory(memory)
        assert "\n" not in str(error.value)
