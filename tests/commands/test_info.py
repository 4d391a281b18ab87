"""`fishnet info`: what it prints is what the models are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fishnet.commands.info import family, info
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model, list_models


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, **options: object) -> str:
    capsys.readouterr()
    info(*arguments, **options)
    return capsys.readouterr().out


def test_the_family_with_its_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in family()}
    assert list(rows) == list_models()
    published = {
        "fishnet99": (16_628_904, 4_263_656_704),
        "fishnet150": (24_959_400, 6_397_842_688),
        "fishnet201": (44_584_552, 10_514_382_080),
    }
    for name, numbers in published.items():
        assert (rows[name]["parameters"], rows[name]["multiply_adds"]) == numbers
        assert rows[name]["strides"] == [2, 4, 8, 16, 32]
        assert rows[name]["channels"] == [64, 320, 832, 1600, 2112]
        assert rows[name]["min_size"] == 32
    text = printed(capsys)
    line = next(line for line in text.splitlines() if line.split()[:1] == ["fishnet99"])
    assert line.split()[1:3] == ["16,628,904", "4,263,656,704"]
    assert json.loads(printed(capsys, json=True))["models"] == list(rows.values())


def test_a_model_with_its_stages() -> None:
    document = info("fishnet99", size=160).document
    model = create_model("fishnet99", device="meta")
    shapes = model.stages(torch.empty(1, 3, 160, 160, device="meta"))
    assert [stage["name"] for stage in document["stages"]] == list(model.stage_info)
    for stage in document["stages"]:
        assert (stage["stride"], stage["channels"]) == model.stage_info[stage["name"]]
        assert (stage["channels"], stage["height"], stage["width"]) == tuple(shapes[stage["name"]].shape[1:])
    depth = {stage["name"]: (stage["blocks"], stage["transfer_blocks"]) for stage in document["stages"]}
    assert [depth[name] for name in ("t1", "t2", "t3", "bridge")] == [(2, None), (2, None), (6, None), (2, None)]
    assert [depth[name] for name in ("b1", "b2", "b3", "h1", "h2", "h3")] == [
        (1, 1),
        (1, 1),
        (1, 1),
        (1, 1),
        (2, 1),
        (2, 4),
    ]
    rest = sum(p.numel() for part in (model.score, model.classifier) for p in part.parameters())
    assert sum(stage["parameters"] for stage in document["stages"]) + rest == document["parameters"]


def test_options_change_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fishnet_nano", size=32, model_option={"stem_stride": 1})
    assert "fishnet_nano stem_stride=1" in text
    assert "smallest input  8x8" in text
    document = json.loads(printed(capsys, "fishnet_nano", json=True, size=40, model_option={"in_chans": 1}))
    assert document["model_option"] == {"in_chans": 1}
    assert document["stages"][0]["height"] == 20


def test_any_timm_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "resnet18", json=True))
    assert document["parameters"] == 11_689_512
    assert [(s["name"], s["stride"], s["channels"], s["height"]) for s in document["stages"]] == [
        ("act1", 2, 64, 112),
        ("layer1", 4, 64, 56),
        ("layer2", 8, 128, 28),
        ("layer3", 16, 256, 14),
        ("layer4", 32, 512, 7),
    ]  # fmt: skip
    assert "layer4" in printed(capsys, "resnet18")
    assert printed(capsys, "vit_tiny_patch16_224", model_option={"depth": 2}).count("blocks.") == 2


def test_gradient_flow_and_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "flow.png"
    options = {"gradient_flow": str(picture), "compare": "resnet18, resnet18:zero_init_last=false", "size": 64}
    document = json.loads(printed(capsys, "fishnet_nano", json=True, **options))
    fish, resnet, ordinary = document["gradient_flow"]
    assert ordinary["model"] == "resnet18 zero_init_last=false"
    assert (
        ordinary["stages"][0]["norm"] > 2 * resnet["stages"][0]["norm"]
    )  # branches that start at zero pass no gradient
    assert [stage["name"] for stage in fish["stages"]] == [
        s["name"] for s in document["stages"] if s["name"] != "stem_conv"
    ]
    assert all(stage["norm"] > 0 and stage["rms"] > 0 for stage in fish["stages"] + resnet["stages"])
    assert fish["isolated"]["trunk"] == []
    assert (len(fish["isolated"]["tail"]), len(fish["isolated"]["bridge"])) == (2, 3)  # t1 keeps its width
    assert resnet["isolated"]["trunk"] == [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]
    with Image.open(picture) as opened:
        assert opened.width > 400
    ablated = {
        "model_option": {"reduction": "conv1x1", "body_widths": [96, 80, 56]},
        "gradient_flow": str(picture),
        "size": 64,
    }
    text = printed(capsys, "fishnet_nano", **ablated)
    assert "trunk, bridge to h3: 2\n    body.b2.blocks.0.reduce.conv\n    body.b3.blocks.0.reduce.conv" in text
    assert f"written: {picture}" in text
    assert printed(capsys, "fishnet_nano", **ablated) == text


def test_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fish.png", "fish.svg"):
        printed(capsys, "fishnet_nano", figure=str(tmp_path / name), size=32)
        assert (tmp_path / name).stat().st_size > 10_000
    with pytest.raises(UsageError, match="cannot draw resnet18"):
        info("resnet18", figure=str(tmp_path / "no.png"))
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "fishnet9"}, "Did you mean 'fishnet99'"),
        ({"model": "fishnet_nano", "model_option": {"gates": True}}, "Did you mean 'gate'"),
        ({"model": "fishnet_nano", "size": 16}, "smallest is 32x32"),
        ({"model": "fishnet_nano", "size": 0}, "must be at least 1 pixel"),
        ({"figure": "fish.png"}, "--figure needs a model"),
        ({"gradient_flow": "flow.png"}, "--gradient-flow needs a model"),
        ({"weights": "x.pth"}, "--weights needs a model"),
        ({"model": "fishnet_nano", "compare": "resnet18"}, "needs --gradient-flow"),
        ({"model": "fishnet_nano", "figure": "fish.doc"}, "must end in .png, .svg, .pdf"),
        ({"model": "fishnet_nano", "gradient_flow": "flow"}, "must end in .png, .svg, .pdf"),
        ({"model": "fishnet_nano", "gradient_flow": "flow.png", "compare": "resnet18x"}, "unknown model"),
        ({"model": "fishnet_nano", "gradient_flow": "flow.png", "compare": "resnet18:a"}, "NAME:KEY=VALUE, not 'a'"),
    ],
)  # fmt: skip
def test_bad_requests_name_the_mistake(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        info(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FishnetError, match="cannot write"):
        info("fishnet_nano", figure=str(blocked / "fish.png"), size=32)
