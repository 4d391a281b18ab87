"""Displays of evaluations, alone and composed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fishnet.drawing.display import Display, Score, Section, Table, combine, unique_names
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


def test_metrics_that_the_split_does_not_determine_are_dashes() -> None:
    assert REGION.text("box_ap", -1.0) == "–"
    assert REGION.text("box_ap", None) == "–"  # NaN, read from JSON
    assert Display().text("bias", -1.0) == "-1"


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
    names = unique_names({"breed": {"top1": 1.0, "ece": 2.0}, "pose": {"top1": 3.0}}, {})
    assert names == {("breed", "top1"): "breed_top1", ("breed", "ece"): "ece", ("pose", "top1"): "pose_top1"}
    one = Display({"top1": Score("top-1")}, ("top1",), frozenset({"top1"}))
    both = combine({"breed": one, "pose": one})
    assert list(both.scores) == ["breed_top1", "pose_top1"]
    assert both.primary_of({"pose_top1", "breed_top1"}) == "breed_top1"
    assert both.fractions == {"breed_top1", "pose_top1"}


def test_a_composed_display_names_metrics_as_the_composed_evaluation_does() -> None:
    # a classifier with one label per image and one with several: both displays declare all metrics of classifiers
    displays = {"breed": IMAGE, "tags": IMAGE, "region": REGION}
    both = combine(displays)
    computed = {
        "breed": {"top1": 0.9, "top5": 1.0, "loss": 0.1},
        "tags": {"map": 0.8, "f1": 0.7, "loss": 0.2},
        "region": {"box_ap": 0.5},
    }
    names = unique_names(computed, displays)
    assert set(names.values()) == {
        "breed_top1", "breed_top5", "breed_loss", "tags_map", "tags_f1", "tags_loss", "box_ap"
    }  # fmt: skip
    assert set(names.values()) <= set(both.scores)
    assert both.primary_of(names.values()) == "breed_top1"
    assert both.text("tags_map", 0.8) == "80.00 %"
    assert both.text("tags_loss", 0.2) == "0.2"
    titles = [both.title(name) for name in both.scores]
    assert len(set(titles)) == len(titles)
    assert both.title("breed_top1") == "breed top-1"
    assert both.title("box_ap") == "box AP"


def test_metrics_that_no_display_declares_are_kept_apart_too() -> None:
    names = unique_names({"near": {"error": 1.0, "bias": 0.1}, "far": {"error": 2.0}}, {})
    assert names == {("near", "error"): "near_error", ("near", "bias"): "bias", ("far", "error"): "far_error"}


def test_tables_of_a_composed_display_keep_the_form_of_their_columns() -> None:
    """A column may be a fraction for one head and a number for another, and a metric of two heads may be a column."""

    def table(evaluation: Mapping[str, object]) -> list[Section]:
        return [Section("Classes", Table(["F1"], ["f1"], [[0.5]]))]

    fraction = Display({"f1": Score("F1")}, fractions=frozenset({"f1"}), sections=table)
    number = Display({"f1": Score("F1")}, sections=table)
    both = combine({"one": fraction, "two": fraction, "three": number})
    assert both.sections({"heads": {}}) == []
    shown = []
    for section in both.sections({"heads": {"one": {}, "two": {}, "three": {}}}):
        assert isinstance(section.content, Table)
        (name,) = section.content.names
        shown.append(both.text(name, 0.5))
    assert shown == ["50.00 %", "50.00 %", "0.5"]
