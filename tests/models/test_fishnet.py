"""The network itself: formulas, numbers, sizes, options, memory and what becomes of it when it is compiled."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fishnet.errors import UsageError
from fishnet.models import VARIANTS, FishConfig, FishConfigError, FishNet, create_model, list_models
from fishnet.models.blocks import Block, ConvDown, DeconvUp, Gate
from fishnet.models.complexity import count
from fishnet.models.config import STAGES
from tests.models.fish import ABLATIONS, images, nano, norm_relu, shallow, with_statistics

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN: dict[str, dict[str, int]] = json.loads((Path(__file__).parent / "golden.json").read_text())


# Numbers -------------------------------------------------------------------------------------------------------------


def test_golden_numbers_and_table_are_those_of_the_models() -> None:
    table = runpy.run_path(str(PROJECT / "docs" / "make_models_table.py"))
    assert table["measure"]() == GOLDEN
    assert (PROJECT / "docs" / "models.md").read_text(encoding="utf-8") == table["page"](GOLDEN)


def test_published_numbers() -> None:
    published = {
        "fishnet99": (16_628_904, 4_263_656_704),
        "fishnet150": (24_959_400, 6_397_842_688),
        "fishnet201": (44_584_552, 10_514_382_080),
    }
    assert {name: (GOLDEN[name]["params"], GOLDEN[name]["macs"]) for name in published} == published
    assert GOLDEN["fishnext150"]["params"] == 24_293_416
    assert list(GOLDEN) == list_models()


@pytest.mark.parametrize(("name", "millions"), [("fishnet_nano", 0.5), ("fishnet_tiny", 3.0), ("fishnet_small", 8.0)])
def test_small_members_are_as_small_as_announced(name: str, millions: float) -> None:
    assert 0.9 * millions <= GOLDEN[name]["params_without_classifier"] / 1e6 <= 1.1 * millions


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("fishnet_nano", {}, (64, 96)),
        ("fishnet_nano", {"upsample": "deconv", "downsample": "conv", "stem_stride": 1}, (40, 32)),
        ("fishnext150", {}, (32, 32)),
        ("resnext50_32x4d", {}, (64, 64)),
        ("vit_tiny_patch16_224", {}, (224, 224)),
    ],
)
def test_complexity_agrees_with_torch(name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    model = create_model(name, **options).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = count(model, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images(1, 3, *size))
    # torch also counts the products of attention, which are no layers' multiply-adds
    operators = counter.get_flop_counts()["Global"]
    flops = sum(n for operator, n in operators.items() if str(operator) in ("aten.convolution", "aten.addmm"))
    assert result.macs * 2 == flops
    assert result.params == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Sizes ---------------------------------------------------------------------------------------------------------------


def halved(size: int, times: int, up: bool) -> int:
    for _ in range(times):
        size = (size + 1) // 2 if up else size // 2
    return size


@torch.no_grad()
@pytest.mark.parametrize("stem_stride", [4, 2, 1])
@pytest.mark.parametrize(("downsample", "upsample"), [("max2", "nearest"), ("max3", "deconv"), ("conv", "bilinear")])
def test_any_size(stem_stride: int, downsample: str, upsample: str) -> None:
    model = nano(stem_stride=stem_stride, downsample=downsample, upsample=upsample).eval()
    smallest = 8 * stem_stride
    for height, width in [(smallest, smallest), (smallest + 1, 3 * smallest - 1), (2 * smallest + 5, smallest + 7)]:
        maps = model.stages(images(1, 3, height, width))
        for name, (stride, channels) in model.stage_info.items():
            stem = 0 if stride == 1 else min(stride, stem_stride).bit_length() - 1
            halvings = stride.bit_length() - 1 - stem
            shape = [halved(halved(s, stem, up=True), halvings, downsample != "max2") for s in (height, width)]
            assert list(maps[name].shape) == [1, channels, *shape], (name, height, width)
        assert model(images(1, 3, height, width)).isfinite().all()


@torch.no_grad()
def test_upsampling_to_the_skip_equals_doubling_on_multiples_of_32() -> None:
    model = nano().eval()
    x = images(1, 3, 96, 160)
    maps = model.stages(x)
    doubled = F.interpolate(model.body.b3.blocks(maps["b2"]), scale_factor=2)
    assert torch.equal(maps["b3"][:, :32], doubled)


@pytest.mark.parametrize(("stem_stride", "smallest"), [(4, 32), (2, 16), (1, 8)])
def test_too_small_an_image_is_refused(stem_stride: int, smallest: int) -> None:
    model = nano(stem_stride=stem_stride).eval()
    assert model.min_size == smallest
    with pytest.raises(ValueError, match=rf"{smallest - 1}x{smallest} pixels.*smallest is {smallest}x{smallest}"):
        model(images(1, 3, smallest - 1, smallest))


def test_batch_of_one_at_the_smallest_size() -> None:
    model = nano().train()
    with pytest.raises(ValueError, match=r"batch size to 2 or more.*larger images.*freeze BatchNorm"):
        model(images(1, 3, 32, 32))
    model(images(2, 3, 32, 32))
    model(images(1, 3, 32, 64))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model(images(1, 3, 32, 32)).sum().backward()


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_every_option_trains_every_parameter(options: dict[str, Any]) -> None:
    model = nano(**options).train()
    model(images(2, 3, 64, 96)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a bias before a norm has no influence: its gradient is rounding noise
        assert parameter.grad.abs().sum() > 0, name


def test_options_change_what_they_say_and_nothing_else() -> None:
    plain = set(nano().state_dict())

    def added(**options: Any) -> set[str]:
        return {key.rpartition(".")[0] for key in set(nano(**options).state_dict()) - plain}

    assert (
        added(downsample="max3") == added(downsample="avg") == added(upsample="bilinear") == added(gate=False) == set()
    )
    parts = itertools.product(("tail.t1", "tail.t2", "tail.t3", "head.h1", "head.h2", "head.h3"), ("norm", "conv"))
    assert added(downsample="conv") == {f"{stage}.down.{part}" for stage, part in parts}
    parts = itertools.product(("body.b1", "body.b2", "body.b3"), ("norm", "conv"))
    assert added(upsample="deconv") == {f"{stage}.up.{part}" for stage, part in parts}
    parts = itertools.product(("body.b1", "body.b2", "body.b3"), ("norm", "conv"))
    assert added(reduction="conv1x1") == {f"{stage}.blocks.0.reduce.{part}" for stage, part in parts}
    released = create_model("fishnet99", device="meta", reduction="conv1x1").state_dict()
    assert not any("b1.blocks.0.reduce" in key for key in released)  # b1 narrows nothing there
    assert plain - set(nano(gate=False).state_dict()) == {key for key in plain if key.startswith("bridge.gate")}


@torch.no_grad()
def test_resampling_ablations_use_their_operator() -> None:
    x = images(1, 32, 6, 6)
    pools = {"max2": F.max_pool2d(x, 2), "max3": F.max_pool2d(x, 3, 2, 1), "avg": F.avg_pool2d(x, 2)}
    for kind, expected in pools.items():
        torch.testing.assert_close(nano(downsample=kind).tail.t1.down(x), expected)
    down = with_statistics(ConvDown(32))
    torch.testing.assert_close(down(x), F.conv2d(norm_relu(down.norm, x), down.conv.weight, stride=2, padding=1))
    up = with_statistics(DeconvUp(32))
    torch.testing.assert_close(up(x), F.conv_transpose2d(norm_relu(up.norm, x), up.conv.weight, stride=2))
    body = nano(upsample="bilinear").eval().body.b1
    maps = images(1, 96, 2, 3), images(1, 64, 5, 6)
    expected = F.interpolate(body.blocks(maps[0]), size=(5, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(body(*maps)[:, :32], expected)


def dilations(model: FishNet) -> dict[str, int]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Block):
            stage = ".".join(part for part in name.split(".") if not part.isdigit())
            assert module.conv2.padding == module.conv2.dilation
            found[stage] = module.conv2.dilation[0]
    return found


def test_dilations_of_the_body_and_of_kept_resolution() -> None:
    blocks = {f"{part}.{name}.blocks" for part in ("tail", "body", "head") for name in STAGES if name[0] == part[0]}
    released = dilations(create_model("fishnet99", device="meta"))
    expected = dict.fromkeys(released, 1) | {"body.b2.blocks": 2, "body.b3.blocks": 4}
    assert released == expected
    assert blocks - {"tail.stem.blocks", "body.bridge.blocks"} <= set(released) | {"tail.t.blocks"}
    assert set(dilations(create_model("fishnet99", device="meta", dilation=False)).values()) == {1}
    kept = dilations(create_model("fishnet99", device="meta", output_stride=16))
    assert kept == expected | {"bridge.blocks": 2, "body.b1.blocks": 2, "head.h3.transfer": 2}
    kept = dilations(create_model("fishnet99", device="meta", output_stride=8))
    assert kept == expected | {
        **{"tail.t3.blocks": 2, "bridge.blocks": 4, "body.b1.blocks": 4, "body.b2.blocks": 4},
        **{"body.b1.transfer": 2, "head.h2.transfer": 2, "head.h3.blocks": 2, "head.h3.transfer": 4},
    }


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [16, 8])
def test_output_stride_keeps_weights_and_resolution(output_stride: int) -> None:
    dense, model = nano(output_stride=output_stride).eval(), nano().eval()
    dense.load_state_dict(model.state_dict())
    maps = dense.stages(images(1, 3, 64, 96))
    for name, (stride, channels) in dense.stage_info.items():
        assert stride == min(model.stage_info[name][0], output_stride)
        assert list(maps[name].shape) == [1, channels, 64 // stride, 96 // stride]


@torch.no_grad()
def test_kept_resolution_with_dilation_refines_the_same_features() -> None:
    """On a grid without pooling maxima to choose from, the dense map holds the coarse one at every second position."""
    coarse = Block(8, 8, 4)
    dense = Block(8, 8, 4, dilation=2)
    dense.load_state_dict(with_statistics(coarse).state_dict())
    x = images(1, 8, 12, 12)
    torch.testing.assert_close(dense.eval()(x)[:, :, ::2, ::2], coarse(x[:, :, ::2, ::2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_stride": 3}, "stem_stride=3 must be one of"),
        ({"output_stride": 4}, "output_stride=4 must be one of"),
        ({"stem_width": 15}, "stem_width=15 must be an even number"),
        ({"tail_widths": (32, 64)}, "tail_widths=.* must be 3 integers"),
        ({"tail_widths": "wide"}, "tail_widths='wide' must be 3 integers"),
        ({"tail_widths": (32, 64, 127)}, "the last must be even"),
        ({"body_widths": (96, 60, 32)}, "60 must divide the 160 channels of b1.*reduction=conv1x1"),
        ({"tail_depths": (1, 0, 1)}, "tail_depths=.*at least 1"),
        ({"bridge_depth": 0}, "bridge_depth=0 must be at least 1"),
        ({"transfer_depths": (1, 1, 1, 1, 1, -1)}, "must not be negative"),
        ({"bottleneck": 0.0}, "bottleneck=0.0 must be above 0"),
        ({"bottleneck": "half"}, "bottleneck='half' must be a number"),
        ({"group_width": 5}, "group_width=5 does not divide"),
        ({"downsample": "max4"}, "downsample='max4' must be 'max2' or 'max3' or 'avg' or 'conv'"),
        ({"gate": 1}, "gate=1 must be true or false"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"steam_stride": 1}, "unknown option 'steam_stride' of model fishnet_nano. Did you mean 'stem_stride'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("fishnet_nano", **options)


def test_config_is_a_value() -> None:
    config = FishConfig(tail_widths=[64, 128, 256], body_widths=[256, 192, 128], stem_width=32)  # type: ignore[arg-type]
    assert config.tail_widths == (64, 128, 256)
    assert hash(config) == hash(config.with_options())
    with pytest.raises(FishConfigError, match="unknown model option 'depth'") as caught:
        config.with_options(depth=3)
    assert isinstance(caught.value, ValueError)
    assert VARIANTS["fishnet150"].with_options(gate=False).gate is False


# Models by name ------------------------------------------------------------------------------------------------------


def test_unknown_models_suggest_near_names() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'fishnet_nono'\. Did you mean 'fishnet_nano'"):
        create_model("fishnet_nono")
    with pytest.raises(UsageError, match=r"resnet50x.*'resnet50"):
        create_model("resnet50x")
    with pytest.raises(UsageError, match=r"model resnet18 cannot be built with.*no_such_option"):
        create_model("resnet18", no_such_option=1)


def test_other_timm_models_pass_through() -> None:
    model = create_model("resnet18", num_classes=7, in_chans=1, drop_path_rate=0.1)
    assert type(model) is timm.models.ResNet
    assert model.fc.out_features == 7


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 1, 3])
def test_class_counts_and_channels(num_classes: int) -> None:
    model = create_model("fishnet_nano", num_classes=num_classes, in_chans=4).eval()
    assert model(images(2, 4, 32, 32)).shape == (2, num_classes or 160)


# Randomness and memory -----------------------------------------------------------------------------------------------


def test_drop_path_grows_along_the_trunk_and_rests_in_eval() -> None:
    model = nano(drop_path_rate=0.3)
    rates = {n: getattr(m.drop_path, "drop_prob", 0.0) for n, m in model.named_modules() if isinstance(m, Block)}
    trunk = [rates[n] for n in rates if ".blocks." in n]
    assert trunk == sorted(trunk)
    assert trunk[0] == 0
    assert trunk[-1] == pytest.approx(0.3)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_checkpointing_changes_memory_only(drop_path_rate: float) -> None:
    plain = nano(drop_path_rate=drop_path_rate).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    kept: dict[FishNet, int] = {}
    x = images(2, 3, 64, 96)
    for model in (plain, saving):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(x).square().sum()
        kept[model] = sum(sizes)
        loss.backward()
    assert kept[saving] < kept[plain] / 2
    for (name, mine), other in zip(saving.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    for (name, mine), other in zip(saving.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=f"{name}: the recomputed pass must not count")
    saving.set_grad_checkpointing(False)
    assert not any(getattr(module, "grad_checkpointing", False) for module in saving.modules())


def test_meta_device_and_fresh_weights() -> None:
    model = create_model("fishnet_nano", device="meta", dtype=torch.float64)
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1)
    model.init_weights()
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    assert model.eval()(images(1, 3, 32, 32).double()).isfinite().all()


@torch.no_grad()
def test_fresh_weights_keep_activations_in_range() -> None:
    torch.manual_seed(0)
    model = create_model("fishnet99").train()
    logits = model(images(4, 3, 64, 64))
    assert 0.01 < logits.std() < 10
    assert all(m.std() < 100 for m in model.stages(images(4, 3, 64, 64)).values())


@torch.no_grad()
def test_channels_last_stays_channels_last() -> None:
    model = nano().eval().to(memory_format=torch.channels_last)
    x = images(2, 3, 64, 64)
    maps = model.stages(x.contiguous(memory_format=torch.channels_last))
    for name, result in maps.items():
        assert result.is_contiguous(memory_format=torch.channels_last), name
    torch.testing.assert_close(maps["h3"], nano().eval().stages(x)["h3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    model = nano().train()
    with torch.autocast("cpu", dtype=dtype):
        logits = model(images(2, 3, 64, 64))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Compilers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "checkpointing"), [("eval", False), ("train", False), ("train", True)])
def test_compiles_without_graph_breaks(mode: str, checkpointing: bool) -> None:
    torch.compiler.reset()
    model = shallow().train(mode == "train")
    model.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = images(2, 3, 64, 64)
    outputs = [m(x) for m in (model, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    if mode == "train":
        for output in outputs:
            output.square().sum().backward()
        for mine, other in zip(compiled.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"gate": False, "drop_path_rate": 0.1}, *ABLATIONS[2:6:2]], ids=str)
def test_torchscript_and_fx(options: dict[str, Any]) -> None:
    model = with_statistics(shallow(**options))
    traced_at, x = images(1, 3, 64, 64), images(2, 3, 72, 41)
    for program in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        torch.testing.assert_close(program(traced_at), model(traced_at))
        torch.testing.assert_close(program(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, traced_at)(traced_at), model(traced_at))


@torch.no_grad()
def test_exports_with_free_size() -> None:
    model = with_statistics(shallow())
    height, width = (32 * torch.export.Dim(name, min=2, max=8) for name in ("rows", "columns"))
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=8), 2: height, 3: width}}
    program = torch.export.export(model, (images(2, 3, 96, 64),), dynamic_shapes=shapes).module()
    x = images(3, 3, 64, 128)
    torch.testing.assert_close(program(x), model(x))


# Import --------------------------------------------------------------------------------------------------------------


def test_import_is_light() -> None:
    heavy = "pytorch_lightning torchmetrics jsonargparse matplotlib pandas sklearn transformers tensorboard"
    probe = f"import sys, fishnet; print(*[m for m in {heavy.split()} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split() == []
    )


def test_gate_sees_the_whole_map() -> None:
    gate = with_statistics(Gate(8, 4, 6))
    x = images(1, 8, 5, 5).requires_grad_()
    gate(x).sum().backward()
    assert gate(x).shape == (1, 6, 1, 1)
    assert x.grad is not None
    assert (x.grad != 0).any(1).float().mean() > 0.9


def test_a_zero_start_leaves_every_block_its_shortcut_and_still_trains() -> None:
    torch.manual_seed(0)
    model = nano(zero_init_last=True).train()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) > 10
    assert all(not block.conv3.weight.any() for block in blocks)
    identity = next(block for block in blocks if isinstance(block.shortcut, nn.Identity))
    x = torch.randn(2, identity.norm1.num_features, 4, 4)
    assert torch.equal(identity(x), identity.reduce(x))
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert all(block.conv3.weight.grad is not None and block.conv3.weight.grad.any() for block in blocks)
    assert all(block.conv3.weight.any() for block in nano(zero_init_last=False).modules() if isinstance(block, Block))


def test_a_zero_start_is_the_default() -> None:
    assert {field.name: field.default for field in dataclasses.fields(FishConfig)}["zero_init_last"] is True
