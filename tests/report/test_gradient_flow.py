"""Gradient norms against autograd by hand, isolated convolutions against lists made by hand."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fishnet.drawing import style
from fishnet.errors import FishnetError
from fishnet.models import create_model
from fishnet.report.gradient_flow import GradientFlow, draw_gradient_flow, gradient_flow, gradient_norms
from fishnet.report.isolated import isolated_convolutions

TAIL = [f"tail.t{i}.blocks.0.shortcut.conv" for i in (1, 2, 3)]
RELEASED_SHAPE = {"stem_width": 16, "tail_widths": [32, 64, 128], "body_widths": [128, 96, 64]}
"""Widths in the proportions of the released members: b1 keeps its input's width, b2 and b3 halve theirs."""
BRIDGE = ["bridge.conv1", "bridge.conv2", "bridge.blocks.0.shortcut.conv"]


class Residual(nn.Module):
    """x + conv(relu(conv(x))), by default; `skip` replaces the identity."""

    def __init__(self, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.skip = skip or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.conv2(F.relu(self.conv1(x)))


class Sized(nn.Module):
    """A convolution whose result is resized to the input: a path of sizes only goes round it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(self.conv(x), size=x.shape[-2:])
        return y.reshape(x.size(0), 4, x.size(2), -1)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, self.weight))


class Net(nn.Module):
    """stem -> a -> b -> classifier, with what timm publishes of the stages."""

    def __init__(self, a: nn.Module, b: nn.Module, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.a, self.b = a, b
        self.fc = nn.Linear(4, classes)
        self.feature_info = [{"module": name, "num_chs": 4, "reduction": 1} for name in ("stem", "a", "b")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.a(self.stem(x))).mean((2, 3)))


def found(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    parts: dict[str, list[tuple[str, str]]] = {}
    for entry in isolated_convolutions(model):
        parts.setdefault(entry.part, []).append((entry.name, entry.stage))
    return parts


def names(model: nn.Module, part: str = "trunk") -> list[str]:
    return [name for name, _ in found(model).get(part, [])]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Residual(), Residual(), []),
        (Residual(nn.Conv2d(4, 4, 1)), Residual(), [("a.skip", "a")]),
        (nn.Sequential(Residual(), nn.Conv2d(4, 4, 1)), Residual(), [("a.1", "a")]),
        (Residual(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), [("b.0", "b"), ("b.2", "b")]),
        (Residual(nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 3)), Residual(), [("a.conv1", "a"), ("a.conv2", "a")]),
        (Sized(), Residual(), [("a.conv", "a")]),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), Residual(), [("a", "a")]),
    ],
)
def test_isolated_convolutions_of_small_networks(a: nn.Module, b: nn.Module, expected: list[tuple[str, str]]) -> None:
    assert found(Net(a, b)).get("trunk", []) == expected


def test_a_functional_convolution_counts_and_is_named_by_its_module() -> None:
    (entry,) = isolated_convolutions(Net(Functional(), Residual()))
    assert entry.name.startswith("a:conv2d")


@pytest.mark.parametrize("name", ["fishnet_tiny", "fishnet99"])
def test_the_trunk_of_a_fish_has_no_isolated_convolution(name: str) -> None:
    parts = found(create_model(name, device="meta"))
    assert parts.keys() == {"tail", "bridge"}
    assert parts["tail"] == [(conv, f"t{i}") for i, conv in enumerate(TAIL, 1)]
    assert parts["bridge"] == [(conv, "bridge") for conv in BRIDGE]


@pytest.mark.parametrize(
    ("options", "trunk"),
    [
        ({"reduction": "conv1x1"}, ["body.b2.blocks.0.reduce.conv", "body.b3.blocks.0.reduce.conv"]),
        ({"downsample": "conv"}, [f"head.h{i}.down.conv" for i in (1, 2, 3)]),
        ({"upsample": "deconv"}, [f"body.b{i}.up.conv" for i in (1, 2, 3)]),
        ({"transfer_depths": [1, 1, 1, 1, 1, 2]}, []),
        ({"stem_stride": 1, "gate": False, "drop_path_rate": 0.1, "downsample": "max3", "upsample": "bilinear"}, []),
    ],
)
def test_ablations_put_isolated_convolutions_on_the_trunk(options: dict[str, object], trunk: list[str]) -> None:
    model = create_model("fishnet_nano", device="meta", **{**RELEASED_SHAPE, **options})
    assert names(model) == trunk
    assert names(model, "bridge") == BRIDGE
    down = [f"tail.t{i}.down.conv" for i in (1, 2, 3)] if options.get("downsample") == "conv" else []
    assert sorted(names(model, "tail")) == sorted(TAIL + down)


def test_resnets_are_cut_by_their_projection_shortcuts() -> None:
    # the stem is conv1 + bn1 + act1; layer1 of resnet50 widens 64 to 256 channels and so projects, that of resnet18 not
    assert found(timm.create_model("resnet50"))["trunk"] == [
        (f"layer{i}.0.downsample.0", f"layer{i}") for i in range(1, 5)
    ]
    assert names(timm.create_model("resnet18")) == [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]


def test_other_kinds_of_networks() -> None:
    assert names(timm.create_model("vit_tiny_patch16_224", depth=2)) == []
    downsample = [f"stages.{i}.downsample.1" for i in (1, 2, 3)]
    assert names(timm.create_model("convnext_atto", depths=(1, 1, 1, 1), conv_mlp=False)) == downsample


def test_a_network_that_cannot_be_traced_says_so() -> None:
    class Branching(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    net = Net(Branching(), Residual())
    with pytest.raises(FishnetError, match="cannot trace Net"):
        isolated_convolutions(net)
    flow = gradient_flow(net, "net", size=8)
    assert flow.isolated is None
    assert len(flow.stages) == 3
    style.figure_bytes(draw_gradient_flow([flow]), "png", dpi=40)


def test_a_network_without_stages_says_so() -> None:
    with pytest.raises(FishnetError, match="no feature stages"):
        gradient_norms(nn.Linear(3, 3))


def test_tracing_and_measuring_leave_a_network_as_it_was() -> None:
    model = create_model("fishnet_nano", num_classes=5, drop_rate=0.5)
    model.train()
    model.body.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    isolated_convolutions(model)
    gradient_norms(model, size=32, batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def expected_norms(outputs: dict[str, torch.Tensor], logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the root mean square over images of the norm of d(loss of the batch)/d(output), by plain autograd."""
    losses = logits.log_softmax(1)[torch.arange(len(labels)), labels].neg()
    gradients = torch.autograd.grad(losses.sum(), list(outputs.values()))
    norms = [torch.stack([image.norm() ** 2 for image in g]).mean().sqrt().item() for g in gradients]
    return dict(zip(outputs, norms, strict=True))


def inputs(size: int, batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator)
    return images, torch.randint(classes, (batch,), generator=generator)


def test_norms_of_a_small_network_equal_autograd() -> None:
    torch.manual_seed(0)
    net = Net(nn.Sequential(Residual(), nn.ReLU(inplace=True)), Residual(nn.Conv2d(4, 4, 1)))
    images, labels = inputs(9, 5, 3, seed=7)
    train = copy.deepcopy(net).train()
    stem = train.stem(images)
    a = train.a(stem)
    b = train.b(a)
    expected = expected_norms({"stem": stem, "a": a, "b": b}, train.fc(b.mean((2, 3))), labels)
    measured = gradient_norms(net, size=9, batch=5, seed=7)
    assert [stage.name for stage in measured] == ["stem", "a", "b"]
    for stage in measured:
        assert stage.norm == pytest.approx(expected[stage.name], rel=1e-5)
        assert stage.shape == (4, 9, 9)
        assert stage.rms == pytest.approx(stage.norm / (4 * 81) ** 0.5)


def test_norms_of_a_fish_equal_autograd() -> None:
    torch.manual_seed(0)
    model = create_model("fishnet_nano", num_classes=6)
    images, labels = inputs(64, 2, 6, seed=1)
    train = copy.deepcopy(model).train()
    outputs = train.stages(images.requires_grad_())
    outputs.pop("stem_conv")
    expected = expected_norms(outputs, train.forward_head(train.score(outputs["h3"])), labels)
    measured = {stage.name: stage for stage in gradient_norms(model, size=64, batch=2, seed=1)}
    assert list(measured) == list(expected) == list(outputs)
    for name, stage in measured.items():
        assert stage.norm == pytest.approx(expected[name], rel=1e-4)
        assert stage.shape == tuple(outputs[name].shape[1:])


def test_bad_requests_are_explained() -> None:
    with pytest.raises(FishnetError, match="does not support images"):
        gradient_norms(create_model("fishnet_nano"), size=16)
    with pytest.raises(FishnetError, match="needs a classifier with at least 2 classes"):
        gradient_norms(Net(Residual(), Residual(), classes=1), size=8)


def test_the_figure_shows_norms_and_marks() -> None:
    flows = [gradient_flow(create_model("fishnet_nano", reduction="conv1x1", **RELEASED_SHAPE), "ablated $x$", size=32)]
    flows.append(gradient_flow(Net(Residual(), Residual()), "clean", size=8))
    figure = draw_gradient_flow(flows)
    for axes, flow in zip(figure.axes, flows, strict=True):
        assert axes.get_yscale() == "log"
        assert axes.lines[0].get_ydata() == pytest.approx([stage.norm for stage in flow.stages])
        assert [label.get_text() for label in axes.get_xticklabels()] == [stage.name for stage in flow.stages]
    ablated = figure.axes[0]
    marks = {line.get_xdata()[0]: line.get_markerfacecolor() for line in ablated.lines if line.get_marker() == "D"}
    order = [stage.name for stage in flows[0].stages]
    filled = {place for place, color in marks.items() if color == style.INK}
    assert filled == {order.index(stage) - 0.5 for stage in ("b2", "b3")}
    assert set(marks) - filled == {order.index(stage) - 0.5 for stage in ("t1", "t2", "t3", "bridge")}
    assert [text.get_text() for text in ablated.texts if "×" in text.get_text()] == ["×3"]
    style.figure_bytes(figure, "png", dpi=40)


def test_crossed_lists_a_part() -> None:
    flow = GradientFlow(
        "x", (), tuple(isolated_convolutions(create_model("fishnet_nano", device="meta"))), ("bridge", "h3")
    )
    assert flow.crossed("trunk") == []
    assert flow.crossed("bridge") == BRIDGE
