"""The switch for BatchNorms: what is replaced keeps its activation, what is frozen came with weights."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.errors import FishnetError, UsageError
from fishnet.loading import load_model
from fishnet.models import create_model
from fishnet.models.build import Architecture, as_network, build_network
from fishnet.models.build_trunk import build_trunk
from fishnet.models.checkpoints.weights import load_to_train, load_weights
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.norms import apply_norm_policy, groups_of, has_batch_norms, hold_norms, note_loaded_norms
from fishnet.models.pyramid import Pyramid


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def saved(model: nn.Module, name: str, path: Path, group_norm: bool = False) -> Path:
    """Write a plain classifier of three classes as a run does; the model stays whole."""
    architecture = Architecture(name, {"image": ClassifierPlan(num_classes=3)}, group_norm=group_norm)
    card = ModelCard("classification", architecture, {"image": HeadCard(["a", "b", "c"])}, 32)
    save_model(path, as_network(deepcopy(model), architecture), card)
    return path


def classifier(name: str = "fishnet_nano") -> nn.Module:
    """Return a classifier whose norms have scales, shifts and statistics of their own."""
    torch.manual_seed(3)
    model = create_model(name, num_classes=3)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return model


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "efficientnet_b0", "resnet18", "levit_128s"])
@torch.no_grad()
def test_replaced_norms_keep_activations_and_dropout(name: str) -> None:
    def others(model: nn.Module) -> Counter[str]:
        return Counter(
            type(m).__name__ for m in model.modules() if not list(m.children()) and "Norm" not in type(m).__name__
        )

    plain = timm.create_model(name, num_classes=3).eval()
    x = images(2, 3, 224, 224) if name.startswith("levit") else images(2, 3, 64, 64)
    sync = apply_norm_policy(deepcopy(plain), "sync")
    assert others(sync) == others(plain)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(sync).values())
    assert torch.equal(sync(x), plain(x))
    group = apply_norm_policy(deepcopy(plain), "group")
    assert others(group) == others(plain)
    assert not batch_norms(group)
    torch.testing.assert_close(group(x)[:1], group(x[:1]), rtol=1e-3, atol=1e-4)
    assert set(group.state_dict()) < set(plain.state_dict())


def test_a_group_norm_is_the_formula_and_the_activation() -> None:
    norm = BatchNormAct2d(48, eps=1e-3, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout(0.0))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = apply_norm_policy(nn.Sequential(deepcopy(norm)), "group")
    x = images(2, 48, 5, 7)
    torch.testing.assert_close(found(x), F.silu(F.group_norm(x, groups_of(48), norm.weight, norm.bias, 1e-3)))
    assert [type(part).__name__ for part in found[0].children()] == ["Dropout", "SiLU"]


def test_odd_norms_are_replaced_or_refused() -> None:
    plain = nn.Sequential(nn.BatchNorm2d(8, affine=False))
    assert apply_norm_policy(plain, "group")(images(2, 8, 4, 4)).shape == (2, 8, 4, 4)

    shared = nn.BatchNorm2d(8)
    twice = apply_norm_policy(nn.ModuleDict({"one": shared, "other": nn.Sequential(shared)}), "group")
    assert twice["one"] is twice["other"][0]

    class Own(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(8)
            self.gate = nn.Linear(8, 8)

    for policy in ("sync", "group"):
        with pytest.raises(UsageError, match=r"cannot replace Own, a BatchNorm with its own submodules \(gate\)"):
            apply_norm_policy(nn.Sequential(Own()), policy)  # type: ignore[arg-type]


def test_only_norms_that_came_with_weights_are_frozen(tmp_path: Path) -> None:
    weights = saved(classifier(), "fishnet_nano", tmp_path / "model.safetensors")
    architecture = Architecture("fishnet_nano", {"region": RegionPlan("mask_rcnn", 2, preset="nano")})
    detector = build_network(architecture, str(weights))
    apply_norm_policy(detector, "frozen").train()
    hold_norms(detector)
    norms = batch_norms(detector)
    inside = {name for name in norms if name.startswith("trunk.")}
    fresh = norms.keys() - inside
    assert {name.rsplit(".", 2)[0] for name in fresh} == {"necks.region.norms"}
    assert len(fresh) == 4
    for name, norm in norms.items():
        assert norm.training == norm.weight.requires_grad == norm.bias.requires_grad == (name in fresh), name
    assert has_batch_norms(detector)

    before = {name: norm.running_mean.clone() for name, norm in norms.items()}  # type: ignore[union-attr]
    maps = detector.necks["region"](detector.trunk(images(2, 3, 64, 64)).maps)
    torch.stack([x.mean() for x in maps.values()]).sum().backward()
    for name, norm in norms.items():
        assert torch.equal(before[name], norm.running_mean) == (name in inside), name
        assert (norm.weight.grad is not None) == (name in fresh), name
    assert [norm.training for norm in batch_norms(deepcopy(detector)).values()] == [n.training for n in norms.values()]


def test_all_norms_of_a_classifier_came_with_its_weights(tmp_path: Path) -> None:
    weights = saved(classifier(), "fishnet_nano", tmp_path / "model.safetensors")
    model = create_model("fishnet_nano", num_classes=7)
    load_weights(model, weights, skip_classifier="resize")
    apply_norm_policy(model, "frozen").train()
    hold_norms(model)
    assert not has_batch_norms(model)
    assert not any(norm.training for norm in batch_norms(model).values())
    assert model.training


def test_frozen_needs_weights_where_there_are_norms_to_freeze() -> None:
    with pytest.raises(UsageError, match=r"--norm frozen freezes BatchNorms that were loaded.*add --weights"):
        apply_norm_policy(create_model("fishnet_nano"), "frozen")
    apply_norm_policy(nn.Sequential(nn.Conv2d(3, 4, 1)), "frozen")
    # the norms before the neck are fresh, and the trunk, which came with weights, has none
    trunk, _ = build_trunk("test_convnext")
    note_loaded_norms(trunk)
    both = apply_norm_policy(nn.ModuleList([trunk, Pyramid(trunk, 16, norm_relu=True)]), "frozen")
    assert len(batch_norms(both)) == 4
    assert all(norm.weight.requires_grad for norm in batch_norms(both).values())


def test_dropout_inside_a_frozen_norm_goes_on() -> None:
    norm = BatchNormAct2d(4, drop_layer=nn.Dropout)
    model = nn.Sequential(norm, nn.BatchNorm2d(4, affine=False)).train()
    note_loaded_norms(model)
    hold_norms(apply_norm_policy(model, "frozen"))
    assert (norm.training, norm.drop.training, model[1].training) == (False, True, False)
    fresh = nn.Sequential(nn.BatchNorm2d(4, affine=False)).train()
    note_loaded_norms(fresh)
    hold_norms(fresh)  # loaded, but the policy is to train
    assert fresh[0].training


@pytest.mark.parametrize("name", ["fishnet_nano", "test_resnet"])
@pytest.mark.parametrize("grouped", [True, False], ids=["from group norms", "from BatchNorms"])
def test_group_norms_take_scale_and_shift_of_either_kind(name: str, grouped: bool, tmp_path: Path) -> None:
    model = classifier(name)
    if grouped:
        model = apply_norm_policy(model, "group")
    path = saved(model, name, tmp_path / "model.safetensors", group_norm=grouped)
    given = {key.replace(".", "_"): value for key, value in model.state_dict().items()}

    trunk, _ = build_trunk(name, weights=str(path), group_norm=True)
    assert not batch_norms(trunk)
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, given[key.removeprefix("network.").replace(".", "_")]), key

    again = create_model(name, num_classes=3)
    load_to_train(again, path, group_norm=True, skip_classifier="resize")
    again = apply_norm_policy(again, "group")
    assert again.state_dict().keys() == {
        key for key in model.state_dict() if "running_" not in key and "num_b" not in key
    }
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["fishnet_nano", "test_resnet"])
def test_group_norms_for_batch_norms_are_one_clear_line(name: str, tmp_path: Path) -> None:
    model = apply_norm_policy(classifier(name), "group")
    path = saved(model, name, tmp_path / "model.safetensors", group_norm=True)
    with pytest.raises(UsageError, match=r"has group norms in place of BatchNorms: add --norm group"):
        build_trunk(name, weights=str(path))
    with pytest.raises(FishnetError, match=r"has group norms, but the model has BatchNorms"):
        load_weights(create_model(name, num_classes=3), path)
    other = saved(classifier(name), name, tmp_path / "other.safetensors")
    with pytest.raises(FishnetError, match=r"has BatchNorms, but the model has group norms"):
        load_weights(model, other)


@torch.no_grad()
def test_a_checkpoint_with_group_norms_predicts_without_a_card(tmp_path: Path) -> None:
    model = apply_norm_policy(classifier(), "group").eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "best.pth")
    network, card = load_model(tmp_path / "best.pth", task="classification", model="fishnet_nano")
    assert card.architecture.group_norm
    x = images(1, 3, 64, 64)
    assert torch.equal(torch.stack(network(x)["image"]), model(x))
