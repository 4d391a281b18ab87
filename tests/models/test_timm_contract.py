"""What timm and its users expect of a model; timm's own tests run on all members in tests/timm_conformance.py."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

from fishnet.models import FishNet, list_models
from fishnet.models.checkpoints.files import write_checkpoint
from fishnet.models.config import STAGES

TAPS = ("stem_conv", "b3", "h1", "h2", "h3")
SMALL = ("fishnet_nano", "fishnet_tiny")


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def fish(name: str = "fishnet_nano", **options: Any) -> FishNet:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 10, **options})


def test_every_member_is_registered_with_its_preprocessing() -> None:
    assert set(timm.list_models(module="fishnet")) == set(list_models())
    assert timm.list_models("fish*", pretrained=True) == ["fishnet150.osmr_in1k", "fishnet_nano.cifar10"]
    config = resolve_model_data_config(timm.create_model("fishnet150", device="meta"))
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bilinear")


@pytest.mark.parametrize("name", ["fishnet99", "fishnet150", "fishnet201", "fishnext150"])
def test_features_of_the_released_members(name: str) -> None:
    model = timm.create_model(name, features_only=True, device="meta").eval()
    assert model.feature_info.channels() == [64, 320, 832, 1600, 2112]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    maps = model(torch.empty(1, 3, 224, 160, device="meta"))
    assert [list(m.shape[1:]) for m in maps] == [
        [c, 224 // s, 160 // s] for c, s in zip([64, 320, 832, 1600, 2112], [2, 4, 8, 16, 32], strict=True)
    ]
    classifier = timm.create_model(name, device="meta")
    assert classifier.num_features == classifier.head_hidden_size == 1056


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_features_are_the_stages(name: str) -> None:
    model = fish(name).eval()
    x = images(1, 3, 64, 96)
    stages = model.stages(x)
    final, features = model.forward_intermediates(x)
    assert all(torch.equal(f, stages[tap]) for f, tap in zip(features, TAPS, strict=True))
    assert torch.equal(final, model.forward_features(x))
    assert [m["num_chs"] for m in model.feature_info] == [stages[tap].shape[1] for tap in TAPS]
    assert [m["reduction"] for m in model.feature_info] == [64 // stages[tap].shape[2] for tap in TAPS]
    for info, feature in zip(model.feature_info, features, strict=True):
        hooked: list[Tensor] = []
        handle = model.get_submodule(info["module"]).register_forward_hook(lambda m, i, y: hooked.append(y))  # noqa: B023
        model(x)
        handle.remove()
        assert torch.equal(hooked[0], feature)


@torch.no_grad()
def test_selection_of_features() -> None:
    model = fish().eval()
    x = images(1, 3, 65, 47)
    features = model.forward_intermediates(x, intermediates_only=True)
    assert list(features[0].shape[2:]) == [33, 24]
    for indices, chosen in (([-1], [4]), ([1, 3], [1, 3]), (2, [3, 4]), (None, [0, 1, 2, 3, 4])):
        taken = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert all(torch.equal(t, features[i]) for t, i in zip(taken, chosen, strict=True))
    for last in range(5):
        final, taken = model.forward_intermediates(x, indices=[last], stop_early=True)
        assert torch.equal(taken[0], features[last])
        assert torch.equal(final, features[last] if last < 4 else model.forward_features(x))
    with pytest.raises(AssertionError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("indices", [(0,), (1,), (2,), (3,), (4,), (1, 2, 3, 4), (0, 1, 2, 3, 4)], ids=str)
def test_pruned_backbones_use_every_parameter(indices: tuple[int, ...]) -> None:
    whole = fish().eval()
    model = timm.create_model("fishnet_nano", features_only=True, out_indices=indices)
    missing, unexpected = model.model.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert not any(key.startswith("stem") for key in unexpected)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, indices=list(indices), intermediates_only=True)
        for mine, other in zip(model.eval()(x), expected, strict=True):
            assert torch.equal(mine, other)
        assert torch.equal(model.model.forward_features(x), expected[-1])
    sum(m.sum() for m in model.train()(x)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_pruning_keeps_what_it_is_asked_to_keep() -> None:
    model = fish().eval()
    x = images(2, 3, 64, 64)
    expected = model(x)
    kept = copy.deepcopy(model)
    assert kept.prune_intermediate_layers([-1], prune_head=False) == [4]
    assert torch.equal(kept(x), expected)
    for last, info in enumerate(model.feature_info):
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([last])
        pruned.reset_classifier(7, "avg")
        assert pruned.num_features == pruned.head_hidden_size == info["num_chs"]
        assert pruned(x).shape == (2, 7)
        assert list(pruned.stages(x)) == list(STAGES[: STAGES.index(TAPS[last]) + 1]) or last == 0


def test_features_with_checkpointing_have_the_same_gradients() -> None:
    x = images(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("fishnet_nano", features_only=True).train()
        model.model.set_grad_checkpointing(checkpointing)
        sum(f.square().mean() for f in model(x)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@torch.no_grad()
def test_reset_classifier() -> None:
    model = fish(global_pool="max").eval()
    x = images(2, 3, 64, 64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features.amax((2, 3)))
    assert torch.equal(model(x), model.get_classifier()(pooled))
    model.reset_classifier(5)
    assert torch.equal(model.forward_head(features, pre_logits=True), pooled)
    assert model(x).shape == (2, 5)
    model.reset_classifier(3, "catavgmax")
    assert model.head_hidden_size == 2 * model.num_features
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    moved = fish(device="meta", dtype=torch.float64)
    moved.reset_classifier(4)
    assert moved.get_classifier().weight.is_meta
    assert moved.get_classifier().weight.dtype == torch.float64


def test_unknown_arguments_raise() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        fish(not_an_argument=1)


@pytest.mark.parametrize("coarse", [True, False])
def test_layer_groups_rise_from_stem_to_classifier(coarse: bool) -> None:
    model = fish("fishnet_tiny", downsample="conv", upsample="deconv", reduction="conv1x1")
    layer = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert layer.keys() == dict(model.named_parameters()).keys()
    parts: list[list[int]] = []
    for prefix in ("stem", "tail.t1", "tail.t2", "tail.t3", "bridge", "body.b1", "body.b2", "body.b3", "head.h1"):
        parts.append([layer[key] for key in layer if key.startswith(f"{prefix}.")])
    parts += [[layer[k] for k in layer if k.startswith(f"{p}.")] for p in ("head.h2", "head.h3", "score", "classifier")]
    for before, after in itertools.pairwise(parts):
        assert max(before) < min(after)
    depth = 2 + 4 + 8 + 2 + 3 + 1 + 2 + 3
    assert len(set(layer.values())) == (13 if coarse else depth + 4)  # stem, bridge's entry, score, classifier
    if not coarse:
        assert layer["head.h3.transfer.0.conv1.weight"] == layer["head.h3.blocks.2.conv1.weight"]


def test_layer_decay_and_weight_decay() -> None:
    model = fish()
    assert model.no_weight_decay() == set()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.classifier.weight)] == 1
    assert scale[id(model.stem.conv1.weight)] < scale[id(model.body.b1.blocks[0].conv1.weight)] < 1
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}


@torch.no_grad()
def test_own_checkpoints_load_through_timm(tmp_path: Path) -> None:
    source = fish().eval()
    write_checkpoint(tmp_path / "nano.pth", source.state_dict())
    x = images(1, 3, 64, 64)
    same = fish(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "nano.pth"), "num_classes": 10})
    assert torch.equal(same.eval()(x), source(x))
    adapted = fish(
        num_classes=3,
        in_chans=1,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "nano.pth"), "num_classes": 10},
    ).eval()
    one = x[:, :1]
    expected = source.forward_features(one.expand(-1, 3, -1, -1))
    torch.testing.assert_close(adapted.forward_features(one), expected, rtol=1e-3, atol=1e-3)


def test_members_without_weights_say_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for fishnet99"):
        timm.create_model("fishnet99", pretrained=True)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (1, 2), (0,)], ids=str)
def test_feature_extractors_script(indices: tuple[int, ...]) -> None:
    model = timm.create_model("fishnet_nano", features_only=True, out_indices=indices).eval()
    x = images(1, 3, 64, 64)
    for mine, other in zip(torch.jit.script(model)(x), model(x), strict=True):
        torch.testing.assert_close(mine, other)


@torch.no_grad()
def test_dtype_follows_the_model() -> None:
    model = fish().eval().to(torch.bfloat16)
    assert model(images(1, 3, 64, 64).to(torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_before_the_classifier() -> None:
    model = fish(drop_rate=0.5)
    assert isinstance(model.head_drop, nn.Dropout)
    features = torch.ones(64, model.num_features, 1, 1)
    assert (model.train().forward_head(features, pre_logits=True) == 0).float().mean() == pytest.approx(0.5, abs=0.05)
