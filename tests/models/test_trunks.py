"""What docs/trunks.md lists: every family's network gives its maps, trains, and keeps what its norms hold."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.build import Architecture, build_network
from fishnet.models.build_trunk import build_trunk
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.norms import apply_norm_policy
from fishnet.models.timm_trunk import TimmTrunk
from tests.models.heads.test_detectors import detector, losses_of, target
from tests.models.test_norms import batch_norms, classifier, saved

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trunks.md"
ROW = re.compile(r"^\| (\w+) \| `(\w+)` \| ([\d,]+) \| (works|refused: (.*))", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text("utf-8"))
WORKING = {name: int(size.replace(",", "")) for _, name, size, result, _ in ROWS if result == "works"}
INSTEAD = re.findall(r"; `(\w+)` works", "".join(row[-1] for row in ROWS))
SMALL = 2_000_000
TURNED = ("swin_tiny_patch4_window7_224", "mvitv2_tiny")  # tokens and NHWC maps


def marked(names: list[str]) -> list[object]:
    slow = [name for name in names if WORKING.get(name, math.inf) > SMALL and name not in TURNED]
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@lru_cache(maxsize=1)
def trunk_of(name: str) -> TimmTrunk:
    torch.manual_seed(0)
    trunk, last = build_trunk(name)
    assert isinstance(trunk, TimmTrunk)
    assert last is None
    return trunk


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def check_maps(trunk: TimmTrunk, maps: list[Tensor], batch: int, height: int, width: int) -> None:
    assert trunk.strides == [4, 8, 16, 32]
    for found, channels, stride in zip(maps, trunk.channels, trunk.strides, strict=True):
        assert found.shape == (batch, channels, height // stride, width // stride)
        assert found.isfinite().all()


def check_gradients(trunk: TimmTrunk) -> None:
    model = deepcopy(trunk).train()
    model.freeze_idle(0)
    maps = model(images(2, 3, 64, 96)).maps
    check_maps(model, maps, 2, 64, 96)
    torch.stack([x.mean() for x in maps]).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # DDP would wait for them
    assert any(p.requires_grad for p in model.parameters())


@torch.no_grad()
def check_norms(trunk: TimmTrunk) -> None:
    def others(model: nn.Module) -> list[str]:
        kinds = [type(m).__name__ for m in model.modules() if not list(m.children())]
        return sorted(kind for kind in kinds if "Norm" not in kind)

    plain, x = deepcopy(trunk).eval(), images(2, 3, 96, 64)
    maps = plain(x).maps
    check_maps(plain, maps, 2, 96, 64)
    sync = apply_norm_policy(deepcopy(plain), "sync")
    assert others(sync) == others(plain)
    assert all(torch.equal(one, other) for one, other in zip(sync(x).maps, maps, strict=True))
    group = apply_norm_policy(deepcopy(plain), "group")
    assert not batch_norms(group)
    assert others(group) == others(plain)
    check_maps(group, group(x).maps, 2, 96, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", marked([*WORKING, *INSTEAD]))
def test_a_network_of_every_family_trains_and_keeps_what_its_norms_hold(name: str) -> None:
    check_gradients(trunk_of(name))
    check_norms(trunk_of(name))


@pytest.mark.parametrize(("name", "reason"), [
    ("coat_tiny", "takes images of 224x224 pixels only"),
    ("hiera_tiny_224", "takes images of 224x224 pixels only"),
    ("halonet26t", "whose sides are multiples of a number such as 256"),
    ("inception_v3", "map of stride 4 is 192x20x36 instead of 192x24x40"),
])  # fmt: skip
def test_networks_that_cannot_work_are_refused_in_one_line(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=rf"^{name} .*{reason}.*choose another network") as error:
        build_trunk(name)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [(name, reason) for _, name, _, _, reason in ROWS if reason])
def test_the_page_lists_the_reason_of_every_refusal(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=re.escape(reason.split("; `")[0].rstrip(" |"))):
        build_trunk(name)


def test_the_page_names_every_family_of_timm() -> None:
    *_, last = PAGE.read_text("utf-8").strip().splitlines()
    without = last.removeprefix("Families without the four strides: ").rstrip(".").split(", ")
    families = {family for family in timm.list_modules() if timm.list_models(module=family)} - {"fishnet"}
    assert {row[0] for row in ROWS} | set(without) == families
    assert len(WORKING) > 50


def test_maps_of_a_transformer_are_those_of_its_layers() -> None:
    torch.manual_seed(0)
    trunk = build_trunk("swin_tiny_patch4_window7_224")[0].eval()
    plain = timm.create_model("swin_tiny_patch4_window7_224", features_only=True).eval()  # (N, H, W, C), one size
    given = trunk.state_dict()
    names = {key.replace(".", "_"): key.removeprefix("network.model.") for key in given}
    flat = {name.removeprefix("network_model_"): given[key] for name, key in zip(names, given, strict=True)}
    plain.load_state_dict({key: flat[key.replace(".", "_")] for key in plain.state_dict()})
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        for found, expected in zip(trunk(x).maps, plain(x), strict=True):
            torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_mambaout", "swin_tiny_patch4_window7_224", "dla46x_c"])
def test_any_form_of_feature_network_takes_the_weights_of_a_classifier(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    path = saved(model, name, tmp_path / "model.safetensors")
    trunk, _ = build_trunk(name, weights=str(path))
    given = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, given[re.sub(r"^network\.(model\.)?", "", key).replace(".", "_")]), key


def test_stages_of_a_wrapped_network_recompute() -> None:
    trunk = trunk_of("swin_tiny_patch4_window7_224")
    plain, recomputing = deepcopy(trunk).train(), deepcopy(trunk).train()
    recomputing.set_memory("saver")
    gradients = []
    for model in (plain, recomputing):
        torch.manual_seed(0)
        torch.stack([x.mean() for x in model(images(1, 3, 64, 64)).maps]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)


def test_parts_that_only_an_unused_map_needs_stand_still() -> None:
    network = detector("fcos", taps="body").train()
    levels = network.necks["region"](network.trunk(images(2, 3, 64, 64)).maps)
    torch.stack([x.mean() for x in levels.values()]).sum().backward()
    ours = [(name, p) for name, p in network.named_parameters() if not name.startswith("heads.")]
    assert not [name for name, p in ours if p.requires_grad and p.grad is None]
    idle = {name for name, p in ours if not p.requires_grad}
    assert {name.rsplit(".", 3)[0] for name in idle} == {"trunk.body.b3.blocks"}


@pytest.mark.parametrize(("model", "taps"), [("resnet18", "head"), ("fishnet_nano", "body")])
def test_idle_parts_are_found_whatever_the_channels_of_the_images(model: str, taps: str) -> None:
    network = detector("fcos", model, taps=taps, in_chans=4).train()
    objects = [target([[8, 10, 40, 50]], (64, 96))]
    torch.stack(list(losses_of(network, images(1, 4, 64, 96), objects).values())).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


FAMILIES = {
    "resnet18": ("layer1.0.conv1", "conv1"),
    "convnext_atto": ("stages.0.blocks.0.conv_dw", "stem.0"),
    "mobilenetv4_conv_small": ("blocks.2.1.dw_mid.conv", "blocks.2.0.dw_start.conv"),
    "swin_tiny_patch4_window7_224": ("layers.2.blocks.3.mlp.fc1", "layers.2.blocks.0.mlp.fc1"),
    "regnetx_002": ("s2.b1.conv1.conv", "stem.conv"),
    "dla46x_c": ("level3.tree2.tree1.conv1", "level3.tree1.tree2.conv1"),
    "efficientnet_b0": ("blocks.1.1.conv_dw", "blocks.1.0.conv_dw"),
    "caformer_s18": ("stages.2.blocks.5.mlp.fc1", "stages.2.blocks.0.mlp.fc1"),  # no groups: timm makes them
}
"""For each family two layers, the first of which is later."""


def timm_layers(name: str) -> tuple[nn.Module, dict[str, float]]:
    """Return a classifier of timm and the shares of its parameters."""
    whole = timm.create_model(name)
    return whole, shares(whole)


def shares(network: nn.Module) -> dict[str, float]:
    """Return the share of the learning rate of each parameter for a layer decay of one half."""
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {key: share[id(parameter)] for key, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", [*FAMILIES, "cait_xxs24_224"])
def test_layer_decay_of_a_classifier_is_that_of_timm(name: str) -> None:
    whole, wanted = timm_layers(name)
    last = whole.pretrained_cfg["classifier"]
    network = build_network(Architecture(name, {"image": ClassifierPlan(num_classes=1000)}))
    found = {
        key.replace("heads.image.classifier", f"trunk.network.{last}").removeprefix("trunk.network."): share
        for key, share in shares(network).items()
    }
    assert found == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_decay_of_a_trunk_is_that_of_timm(name: str) -> None:
    _, wanted = timm_layers(name)
    by_name = {key.replace(".", "_"): share for key, share in wanted.items()}
    found = shares(detector("fcos", name))
    trunk = {key.removeprefix("trunk.network."): share for key, share in found.items() if key.startswith("trunk.")}
    expected = {key: by_name[re.sub(r"^model\.", "", key).replace(".", "_")] for key in trunk}
    order = sorted({1.0, *expected.values()})  # a part that only the classifier needs is no layer here
    assert trunk == {key: 0.5 ** (len(order) - 1 - order.index(share)) for key, share in expected.items()}
    assert {share for key, share in found.items() if not key.startswith("trunk.")} == {1.0}
    later, earlier = FAMILIES[name]
    assert by_name[f"{later.replace('.', '_')}_weight"] > by_name[f"{earlier.replace('.', '_')}_weight"]
