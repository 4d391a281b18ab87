"""The figure of the fish tells what the model is."""

from __future__ import annotations

import pytest
import timm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from fishnet.drawing import style
from fishnet.errors import UsageError
from fishnet.models import create_model, list_models
from fishnet.report.architecture import draw_fish


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", list_models())
def test_every_member_can_be_drawn(name: str) -> None:
    model = create_model(name, device="meta")
    shown = texts(draw_fish(model, name))
    for stage, (stride, channels) in model.stage_info.items():
        if stage != "stem_conv":
            assert stage in shown
            assert f"{channels} ch" in shown
            assert str(stride) in shown
    assert name in shown


def test_boxes_and_arrows_of_fishnet99() -> None:
    figure = draw_fish(create_model("fishnet99", device="meta"), "fishnet99")
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    heights = [round(box.get_height(), 3) for box in boxes]
    strides = [4, 8, 16, 32, 32, 16, 8, 4, 8, 16, 32, 32]
    assert len(set(zip(strides, heights, strict=True))) == 4
    assert heights[0] == max(heights)
    assert sorted(strides, reverse=True) == [stride for _, stride in sorted(zip(heights, strides, strict=True))]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 6 + 13
    shown = texts(figure)
    pills = ["256 ch, 1 block", "128 ch, 1 block", "64 ch, 1 block"]
    assert [text for text in shown if "," in text and "arcs" not in text][:6] == [
        *pills, "512 ch, 1 block", "768 ch, 1 block", "512 ch, 4 blocks",
    ]  # fmt: skip
    assert "16.6 M parameters" in shown
    assert "1,000\nclasses" in shown


def test_options_show_in_the_figure() -> None:
    small = texts(draw_fish(create_model("fishnet_nano", num_classes=0, gate=False, stem_stride=1)))
    assert "features" in small
    assert "+ gate" not in small
    assert "+ gate" in texts(draw_fish(create_model("fishnet_nano", device="meta")))
    style.figure_bytes(draw_fish(create_model("fishnet_nano", device="meta", output_stride=8)), "png", dpi=30)


def test_only_a_fish_is_drawn() -> None:
    with pytest.raises(UsageError, match="cannot draw resnet18"):
        draw_fish(timm.create_model("resnet18"), "resnet18")
