"""Displays of evaluations, alone and composed."""

from __future__ import annotations

import pytest

from fishnet.drawing.display import Display, Score, Table, combine, unique_names
from fishnet.errors import FishnetError
from fishnet.tasks import get_task

IMAGE, REGION = get_task("classification").display, get_task("detection").display


def test_the_primary_metric_is_the_first_that_was_computed() -> None:
    assert IMAGE.primary_of({"top1", "loss"}) == "top1"
    assert IMAGE.primary_of({"map", "loss"}) == "map"
    assert REGION.primary_of({"box_ap", "mask_ap"}) == "mask_ap"
    assert REGION.primary_of({"keypoint_ap", "box_ap"}) == "box_ap"
    with pytest.raises(FishnetError, match="none of top1, map"):
        IMAGE.primary_of({"loss"})


def test_only_declared_fractions_are_percent() -> None:
    assert IMAGE.text("top1", 0.5) == "50.00 %"
    assert IMAGE.text("loss", 0.5) == "0.5"
    assert Display().text("error", 0.5) == "0.5"
    assert IMAGE.text("top1", float("nan")) == "nan"


def test_composed_displays_keep_metrics_apart() -> None:
    both = combine({"image": IMAGE, "region": REGION})
    assert both.title("top1") == "top-1"
    assert both.title("box_ap") == "box AP"
    assert both.primary_of({"top1", "box_ap"}) == "top1"
    assert both.text("box_ap50", 0.25) == "25.00 %"
    row = {"class": "cat", "images": 3, "recall": 0.5}
    parts = {"image": {"per_class": [row]}, "region": {"metrics": {"box_ap": 0.5, "box_ap50": 0.7}}}
    sections = both.sections({"heads": parts})
    assert [section.title for section in sections] == ["image: Classes", "region: COCO's metrics"]
    assert isinstance(sections[0].content, Table)
    assert sections[0].content.rows == [["cat", 3, 0.5]]
    assert both.sections({}) == []


def test_heads_with_metrics_of_one_name_have_the_head_in_front() -> None:
    names = unique_names({"breed": {"top1": 1.0, "ece": 2.0}, "pose": {"top1": 3.0}})
    assert names == {("breed", "top1"): "breed_top1", ("breed", "ece"): "ece", ("pose", "top1"): "pose_top1"}
    one = Display({"top1": Score("top-1")}, ("top1",), frozenset({"top1"}))
    both = combine({"breed": one, "pose": one})
    assert list(both.scores) == ["breed_top1", "pose_top1"]
    assert both.primary_of({"pose_top1", "breed_top1"}) == "breed_top1"
    assert both.fractions == {"breed_top1", "pose_top1"}
