"""Trunks and pyramids: names, strides and channels of the maps, and where weights go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.errors import UsageError
from fishnet.models import FishNet, create_model
from fishnet.models.build import Architecture, as_network
from fishnet.models.build_trunk import build_trunk
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.norms import (
    SmallBatchWarning,
    apply_norm_policy,
    check_norm_policy,
    groups_of,
    has_batch_norms,
    hold_norms,
    note_loaded_norms,
)
from fishnet.models.pyramid import Pyramid
from fishnet.models.trunk import TAPS, FishTrunk, Trunk


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def trunk_of(name: str, taps: Any = "head", **options: Any) -> Trunk:
    trunk, last = build_trunk(name, taps, **options)
    assert last is None
    return trunk


@torch.no_grad()
@pytest.mark.parametrize("taps", list(TAPS))
def test_a_fish_gives_the_maps_of_its_stages(taps: Any) -> None:
    torch.manual_seed(0)
    fish = create_model("fishnet_nano").eval()
    assert isinstance(fish, FishNet)
    x = images(2, 3, 64, 96)
    stages = fish.stages(x)
    trunk = FishTrunk(fish, taps)
    assert trunk.strides == [4, 8, 16, 32]
    maps, vector = trunk(x)
    assert vector is None
    for name, channels, stride, found in zip(TAPS[taps], trunk.channels, trunk.strides, maps, strict=True):
        assert torch.equal(found, stages[name])
        assert found.shape == (2, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("taps", list(TAPS))
def test_no_part_of_a_trunk_is_idle(taps: Any) -> None:
    trunk = trunk_of("fishnet_nano", taps).train()
    torch.stack([x.square().mean() for x in trunk(images(2, 3, 64, 64)).maps]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())


def test_channels_of_the_released_members_are_those_of_the_plan() -> None:
    with torch.device("meta"):
        fish = create_model("fishnet99")
    assert isinstance(fish, FishNet)
    assert FishTrunk(fish, "head").channels == [320, 832, 1600, 2112]
    assert FishTrunk(fish, "body").channels == [320, 512, 768, 512]
    assert FishTrunk(fish, "tail").channels == [64, 128, 256, 512]


@torch.no_grad()
def test_any_timm_network_with_the_four_strides_is_a_trunk() -> None:
    trunk = trunk_of("resnet18").eval()
    assert (trunk.strides, trunk.channels) == ([4, 8, 16, 32], [64, 128, 256, 512])
    assert [tuple(x.shape[1:]) for x in trunk(images(1, 3, 64, 64)).maps] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"vit_tiny_patch16_224 has no map of stride 4, 8, 32"):
        trunk_of("vit_tiny_patch16_224")
    with pytest.raises(UsageError, match=r"only FishNets have such stages"):
        trunk_of("resnet18", "body")
    with pytest.raises(UsageError, match=r"did you mean|Did you mean"):
        trunk_of("fishnet_nan0")


@pytest.mark.parametrize("name", ["fishnet_nano", "resnet18"])
def test_a_trunk_takes_the_weights_of_a_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = create_model(name, num_classes=3)
    given = {key.replace(".", "_"): value.clone() for key, value in model.state_dict().items()}
    architecture = Architecture(name, {"image": ClassifierPlan(num_classes=3)})
    path = tmp_path / "model.safetensors"
    card = ModelCard("classification", architecture, {"image": HeadCard(["a", "b", "c"])}, 32)
    save_model(path, as_network(model, architecture), card)
    trunk = trunk_of(name, weights=str(path))
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, given[key.removeprefix("network.").replace(".", "_")]), key


@torch.no_grad()
@pytest.mark.parametrize("neck", ["fpn", "none"])
@pytest.mark.parametrize(("extra", "finest", "names"), [
    ("none", 0, ["0", "1", "2", "3"]),
    ("pool", 0, ["0", "1", "2", "3", "pool"]),
    ("p6p7", 1, ["1", "2", "3", "p6", "p7"]),
])  # fmt: skip
def test_levels_have_the_strides_they_claim(neck: Any, extra: Any, finest: int, names: list[str]) -> None:
    trunk = trunk_of("fishnet_nano").eval()
    pyramid = Pyramid(trunk, 16, neck, extra=extra, finest=finest).eval()
    assert pyramid.names == names
    maps = pyramid(trunk(images(1, 3, 256, 128)).maps)
    assert list(maps) == names
    for found, stride in zip(maps.values(), pyramid.strides, strict=True):
        assert found.shape == (1, 16, 256 // stride, 128 // stride)


@torch.no_grad()
def test_norm_and_relu_stand_before_the_neck_of_raw_maps_only() -> None:
    def ready(name: str, switch: bool | None) -> bool:
        return isinstance(Pyramid(trunk_of(name), 16, norm_relu=switch).norms[0], nn.Sequential)

    assert ready("fishnet_nano", None)
    assert not ready("resnet18", None)
    assert not ready("fishnet_nano", False)
    assert ready("resnet18", True)
    trunk = trunk_of("fishnet_nano").eval()
    pyramid = Pyramid(trunk, 16, "none").eval()
    raw = trunk(images(1, 3, 64, 64)).maps
    for layer, found, mine in zip(pyramid.neck.layers, pyramid(raw).values(), raw, strict=True):
        # fresh norms are the identity up to their epsilon
        torch.testing.assert_close(found, layer(mine.relu()), rtol=1e-4, atol=1e-4)


def test_the_norms_follow_one_switch() -> None:
    frozen = create_model("fishnet_nano").train()
    note_loaded_norms(frozen)
    frozen = apply_norm_policy(frozen, "frozen")
    hold_norms(frozen)
    norms = [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    frozen(images(2, 3, 64, 64))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert not has_batch_norms(frozen)

    group = apply_norm_policy(create_model("fishnet_nano"), "group").train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    assert set(group.state_dict()) < set(frozen.state_dict())
    x = images(2, 3, 64, 64)
    with torch.no_grad():  # an image's answer does not depend on the others of its batch
        torch.testing.assert_close(group(x)[:1], group(x[:1]), rtol=1e-4, atol=1e-5)
    group(x).sum().backward()
    assert all(p.grad is not None for p in group.parameters())

    sync = apply_norm_policy(create_model("fishnet_nano"), "sync")
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in sync.modules()) == len(norms)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 16), (48, 8), (12, 2), (8, 2), (3, 1)])
def test_groups_divide_the_channels_and_are_not_too_narrow(channels: int, groups: int) -> None:
    assert groups_of(channels) == groups


def test_the_switch_warns_of_small_batches_and_refuses_what_cannot_work() -> None:
    with pytest.warns(SmallBatchWarning, match=r"4 images per device.*--norm frozen"):
        check_norm_policy("train", 4, on_gpu=False)
    with pytest.raises(UsageError, match="sync needs GPUs"):
        check_norm_policy("sync", 16, on_gpu=False)
    with pytest.warns(SmallBatchWarning, match=r"was not loaded from weights trains on 1 images.*norm-relu false"):
        check_norm_policy("frozen", 1, on_gpu=False)
    check_norm_policy("frozen", 1, on_gpu=False, has_batch_norms=False)
    check_norm_policy("group", 1, on_gpu=False)
    check_norm_policy("train", 8, on_gpu=False)
    check_norm_policy("train", 1, on_gpu=False, has_batch_norms=False)
