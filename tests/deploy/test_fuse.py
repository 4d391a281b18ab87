"""A fused network computes what the network computes, whatever its parts; what must not be folded stays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fishnet
from fishnet.deploy.fuse import NotFused, fuse
from fishnet.models.blocks import ChannelSum
from fishnet.models.build import Architecture, build_network
from fishnet.models.fusing.fish import FusedBlock, SumConv2d, convolve_sums
from fishnet.models.fusing.folding import Affine
from fishnet.models.fusing.kernels import Pointwise, WinogradConv2d
from fishnet.models.heads.detectors import DETECTORS, RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Network

NORM = nn.modules.batchnorm._BatchNorm
VARIANTS: list[dict[str, object]] = [
    {"stem_stride": 1},
    {"stem_stride": 2, "downsample": "max3"},
    {"downsample": "avg", "upsample": "bilinear"},
    {"downsample": "conv", "upsample": "deconv"},
    {"reduction": "conv1x1", "gate": False},
    {"output_stride": 16},
    {"output_stride": 8, "group_width": 4, "bottleneck": 0.5},
    {"drop_path_rate": 0.2, "in_chans": 1},
]


@pytest.fixture(autouse=True)
def _no_surprise() -> Iterator[None]:
    """Whatever is not fused fails its test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotFused)
        yield


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm statistics, scales (some negative or zero) and shifts at random, and no convolution zeros."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NORM) and module.running_mean is not None:
                module.running_mean.copy_(0.3 * normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).abs())
                if module.affine:
                    module.weight.copy_(0.7 + 0.5 * normal(module.weight))
                    module.weight[::7] = 0
                    module.bias.copy_(0.3 * normal(module.bias))
            if isinstance(module, nn.Conv2d) and not module.weight.any():
                module.weight.copy_(0.5 * normal(module.weight) / module.weight[0].numel() ** 0.5)
    return network.eval()


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(module, NORM) for module in network.modules())


@torch.no_grad()
def largest_difference(before: object, after: object) -> float:
    worst = 0.0
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    for a, b in ((a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point() and a.numel()):
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


@torch.no_grad()
def check(
    network: nn.Module, size: tuple[int, int] = (75, 101), in_chans: int = 3, most_norms: int | None = None
) -> None:
    """Compare both kinds of fused copies with the network, in both precisions, on images that the trial did not see."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, in_chans, *size, generator=generator, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        network = network.to(dtype)
        run = network.raw if isinstance(network, Network) else network
        wanted = run(images.to(dtype))
        for eager in (False, True):
            fused = fuse(network, eager)
            given = images.to(dtype)
            found = (fused.raw if isinstance(fused, Network) else fused)(given)
            assert torch.equal(given, images.to(dtype))  # nothing writes into the input
            assert largest_difference(wanted, found) <= tolerance
            if most_norms is not None:
                assert norms_in(fused) <= most_norms
        assert all(torch.equal(value, state[name].to(value)) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["fishnet99", "fishnext150", "fishnet_nano", "fishnet_tiny", "fishnet_small"])
def test_members_of_the_family(name: str) -> None:
    network = randomized(fishnet.create_model(name, num_classes=11))
    first_norms = sum(name.endswith("norm1") for name, _ in network.named_modules())
    shortcuts = sum(name.endswith("shortcut") and len(list(m.children())) > 0 for name, m in network.named_modules())
    check(network, most_norms=first_norms + shortcuts + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fishnet150", "fishnet201"])
def test_large_members_of_the_family(name: str) -> None:
    check(randomized(fishnet.create_model(name, num_classes=11)), (224, 224))


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options))
def test_variants_of_the_fish(options: dict[str, object]) -> None:
    check(
        randomized(fishnet.create_model("fishnet_nano", num_classes=5, **options)), in_chans=options.get("in_chans", 3)
    )


def test_all_maps_of_the_fish_stay_as_they_are() -> None:
    """Residual sums are written in place; maps that several stages read must not be among them."""
    network = randomized(build_network(Architecture("fishnet_tiny", {"region": RegionPlan("retinanet")})))
    fused = fuse(network, eager=True)
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        before, after = network.trunk.named_maps(images), fused.trunk.named_maps(images)
    assert {name: largest_difference(before[name], after[name]) <= 1e-5 for name in before} == dict.fromkeys(
        before, True
    )


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("efficientnet_b0", 0),
        ("mobilenetv3_small_100", 0),
        ("regnety_002", 0),
        ("repvgg_a0", None),
        ("densenet121", None),
        ("hrnet_w18_small", 0),
        ("dla34", 0),
        ("convnext_atto", 0),
        ("inception_next_atto", None),
    ],
)
def test_networks_of_timm(name: str, left: int | None) -> None:
    network = randomized(timm.create_model(name, num_classes=7))
    check(network, (96, 96), most_norms=left)


PLANS: dict[str, dict[str, HeadPlan]] = {
    "image": {"image": ClassifierPlan(num_classes=4)},
    **{kind: {"region": RegionPlan(kind, 3, preset="nano", keypoints=4)} for kind in DETECTORS},
    **{name: {"pixel": PixelPlan(num_classes=4, decoder=name)} for name in ("fish", "hypercolumn", "fpn", "upernet")},
    **{name: {"pixel": PixelPlan(num_classes=4, decoder=name)} for name in ("smp:unet", "smp:deeplabv3plus")},
    "all levels": {
        "image": ClassifierPlan(num_classes=4),
        "region": RegionPlan("mask_rcnn", 3, preset="nano"),
        "pixel": PixelPlan(num_classes=4, auxiliary=True),
    },
}


@pytest.mark.parametrize("name", PLANS)
def test_networks_of_every_task(name: str) -> None:
    network = randomized(build_network(Architecture("fishnet_nano", PLANS[name])))
    check(network, (96, 64))


@pytest.mark.parametrize("backbone", ["fishnet_nano", "efficientnet_b0"])
def test_answers_and_losses_of_a_fused_network(backbone: str) -> None:
    """What predicts and evaluates is complete: lists of images, decoding, names."""
    network = randomized(build_network(Architecture(backbone, PLANS["all levels"])))
    fused = fuse(network, eager=True)
    images = [torch.rand(3, 70, 90), torch.rand(3, 64, 64)]
    with torch.inference_mode():
        before, after = network(images), fused(images)
    assert largest_difference(before["pixel"], after["pixel"]) <= 1e-4
    assert largest_difference(before["image"], after["image"]) <= 1e-4
    for one, other in zip(before["region"], after["region"], strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        assert torch.allclose(one["scores"], other["scores"], atol=1e-4)


class Read(nn.Module):
    """Networks with a convolution that more than one norm reads, in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        kind = StdConv2d if way == "standardized" else nn.Conv2d
        self.conv = kind(3, 8, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.tied = nn.Conv2d(3, 8, 3, padding=1)
        if way == "tied":
            self.tied.weight = self.conv.weight

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        match self.way:
            case "returned":
                return self.norm(y), y
            case "added":
                return self.norm(y) + y
            case "two norms":
                return self.norm(y) + self.other(y)
            case "one norm for two":
                return self.norm(y) + self.norm(2 * x.mean(1, keepdim=True).expand_as(y))
            case "tied":
                return self.norm(y) + self.tied(x)
            case "twice":
                return self.norm(y) + self.norm(self.conv(x.flip(-1)))
            case "shape":
                return self.norm(y).view(y.shape[0], y.size(1), -1)
        return self.norm(y)


@pytest.mark.parametrize(
    ("way", "folded"),
    [
        ("plain", True), ("shape", True), ("twice", True), ("returned", False), ("added", False),
        ("two norms", False), ("one norm for two", False), ("tied", False), ("standardized", False),
    ],
)  # fmt: skip
def test_what_else_reads_a_convolution(way: str, folded: bool) -> None:
    network = randomized(Read(way))
    check(network, (16, 16))
    assert isinstance(fuse(network).norm, nn.Identity) == folded


def test_norms_without_statistics_or_parameters() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
    )  # fmt: skip
    check(randomized(network), (20, 20), most_norms=1)


def test_fusing_twice_changes_nothing() -> None:
    network = randomized(fishnet.create_model("fishnet_tiny", num_classes=3))
    once = fuse(network, eager=True)
    twice = fuse(once, eager=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(once(images), twice(images))
    assert any(isinstance(module, FusedBlock) for module in twice.modules())


def test_a_network_in_training_mode_is_copied_to_eval_mode() -> None:
    network = randomized(fishnet.create_model("fishnet_nano", num_classes=3)).train()
    fused = fuse(network)
    assert network.training
    assert not any(module.training for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


class OneSize(nn.Module):
    """A network for images of 40x40 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 38 * 38, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_network_of_an_unknown_size_needs_an_example() -> None:
    network = randomized(OneSize())
    with pytest.warns(NotFused, match="pass an example to fuse"):
        assert norms_in(fuse(network)) == 1
    assert norms_in(fuse(network, example=torch.randn(1, 3, 40, 40))) == 0


def test_a_first_convolution_behind_space_to_depth() -> None:
    conv = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3), nn.BatchNorm2d(4))
    assert norms_in(fuse(randomized(conv))) == 0


class Unsteady(nn.Module):
    """A network whose code depends on whether its norm is a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if isinstance(self.norm, nn.BatchNorm2d) else y + 1


def test_a_fused_network_that_differs_is_not_used() -> None:
    network = randomized(Unsteady())
    with pytest.warns(NotFused, match="differs"):
        fused = fuse(network)
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(fused(images), network(images))


def test_channel_reductions_as_convolutions() -> None:
    network = randomized(fishnet.create_model("fishnet_nano", num_classes=5))
    images = torch.randn(2, 3, 64, 64)
    before = network(images)
    convolve_sums(network)
    assert not [module for module in network.modules() if isinstance(module, ChannelSum)]
    assert len([module for module in network.modules() if isinstance(module, SumConv2d)]) == 3
    torch.testing.assert_close(network(images), before, rtol=1e-5, atol=1e-5)


def test_a_fused_network_with_nan_is_not_used() -> None:
    class Breaking(Unsteady):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y if isinstance(self.norm, nn.BatchNorm2d) else y * torch.nan

    with pytest.warns(NotFused, match="differs by nan"):
        assert norms_in(fuse(randomized(Breaking()))) == 1


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(28, 28), (13, 18), (30, 5), (64, 64)])
def test_minimal_filtering_equals_the_convolution(size: tuple[int, int], relu: bool) -> None:
    conv = nn.Conv2d(96, 130, 3, padding=1)
    x = torch.randn(3, 96, *size)
    wanted = conv.double()(x.double())
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        found = WinogradConv2d(conv.to(dtype), relu)(x.to(dtype))
        assert largest_difference(F.relu(wanted) if relu else wanted, found.double()) < tolerance
    assert WinogradConv2d(conv)(x[:0]).shape == (0, 130, *size)


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.0, 1e-35, -1e-35, 1e3])
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7])
def test_bounds_in_place_of_norm_and_relu(scale: float, shift: float) -> None:
    conv = nn.Conv2d(5, 6, 1)
    scales, shifts = torch.full((5,), scale).double(), torch.full((5,), shift).double()
    scales[0] = 1  # channels bounded on different sides
    module = Pointwise(conv, Affine(scales, shifts))
    x = 10 * torch.randn(2, 5, 4, 3)
    x[0, :, 0, 0] = 0
    wanted = F.conv2d(
        F.relu(scales[:, None, None] * x.double() + shifts[:, None, None]), conv.weight.double(), conv.bias.double()
    )
    assert largest_difference(wanted, module(x).double()) < 1e-5


def test_half_precision_of_autocast() -> None:
    network = randomized(fishnet.create_model("fishnet_tiny", num_classes=3))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert largest_difference(network(images).float(), fuse(network)(images).float()) < 0.1
