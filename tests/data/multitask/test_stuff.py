"""Which classes of label maps are stuff: named, not shared by name, or found from where their pixels are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import from_numpy

from fishnet.data import run_lengths
from fishnet.data.levels import ImageLabels, LayoutWriter, LevelClasses, ObjectLabels
from fishnet.data.multitask.layout import MultitaskSplit, open_multitask
from fishnet.data.multitask.stuff import decide_stuff, inside_outlines, shared_by_name
from fishnet.errors import FishnetError
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.multitask.training import MultitaskTraining
from tests.data.makers import noise

CLASSES = LevelClasses([], ["cat", "dog"], ["grass", "Cat ", "animal", "wall"])


def folder(root: Path, outside: int = 0, every: int = 1) -> Path:
    """Write images with a cat and a dog, whose pixels are `animal` in the label maps; the rest is grass and wall.

    Args:
        root: Folder to write.
        outside: Width in pixels of `animal` beside the objects.
        every: Only every n-th image has outlines.
    """
    writer = LayoutWriter(root, CLASSES)
    for number in range(6):
        masks = np.zeros((2, 36, 40), bool)
        masks[0, 4:14, 2 + number : 20], masks[1, 16:30, 10:30] = True, True
        label_map = np.where(np.arange(40) < 20, 0, 3)[None].repeat(36, 0).astype(np.uint8)
        label_map[masks.any(0)] = 2
        label_map[:, 40 - outside :] = 2
        runs = run_lengths.encode(from_numpy(masks))
        kept = runs if number % every == 0 else None
        objects = ObjectLabels(np.array([0, 1]), run_lengths.bounding_boxes(runs), np.zeros(2, bool), kept)
        writer.add("train", f"{number}.jpg", noise(number), (40, 36), ImageLabels(None, objects, label_map))
    writer.finish()
    return root


def named(root: Path, **entries: Any) -> MultitaskSplit:
    """Open a folder with more entries in its classes.json."""
    path = root / "classes.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries))
    return open_multitask(root, "train")


def test_a_class_whose_pixels_lie_in_outlines_is_one_of_objects(tmp_path: Path) -> None:
    found = decide_stuff(open_multitask(folder(tmp_path), "train"))
    assert found.names == ["grass", "wall"]
    line = found.describe(CLASSES.pixel)
    assert line.startswith("panoptic maps: stuff is grass, wall; Cat , animal are not (")
    assert "Cat  is a category of objects" in line
    assert "100 % of animal are inside outlines of objects" in line
    assert "--stuff" in line
    assert "classes.json" in line


def test_shares_are_counts_of_pixels(tmp_path: Path) -> None:
    split = open_multitask(folder(tmp_path, outside=4), "train")
    inside = total = 0
    for index in range(len(split)):
        _, labels = split.load(index)
        assert labels.objects is not None
        cover = run_lengths.decode(labels.objects.masks or [], 36, 40).numpy().any(0)
        inside += int(((labels.label_map == 2) & cover).sum())
        total += int((labels.label_map == 2).sum())
    shares = inside_outlines(split)
    assert shares == {"grass": 0.0, "animal": inside / total, "wall": 0.0}
    assert 0.5 < shares["animal"] < 0.9
    assert decide_stuff(split).names == ["grass", "animal", "wall"]


def test_images_whose_objects_lack_outlines_are_not_measured(tmp_path: Path) -> None:
    every = inside_outlines(open_multitask(folder(tmp_path / "a"), "train"))
    some = inside_outlines(open_multitask(folder(tmp_path / "b", every=2), "train"))
    assert some == every == {"grass": 0.0, "animal": 1.0, "wall": 0.0}


def test_what_is_named_counts(tmp_path: Path) -> None:
    split = named(folder(tmp_path), stuff=["wall", "animal"])
    assert decide_stuff(split).names == ["animal", "wall"]
    assert "classes.json names it" in decide_stuff(split).describe(CLASSES.pixel)
    assert decide_stuff(split, ["grass"]).names == ["grass"]
    assert decide_stuff(named(tmp_path, stuff=[])).names == []
    with pytest.raises(FishnetError, match=r"`stuff` names 'walls', which is no class\. Did you mean 'wall'"):
        named(tmp_path, stuff=["walls"])
    with pytest.raises(FishnetError, match="`stuff` must be a list of classes"):
        named(tmp_path, stuff="wall")


def test_names_are_compared_without_case() -> None:
    assert shared_by_name(["Sky", "DOG", "cat "], ["dog", "Cat"]) == ["DOG", "cat "]


def test_the_pets_are_things(mini: Callable[[str], Path]) -> None:
    """Every category is a breed, and the label maps know `pet` only."""
    found = decide_stuff(open_multitask(mini("pets3"), "train"))
    assert found.names == ["background"]
    assert "of pet are inside outlines" in found.reason
    settings = {"data": str(mini("pets3")), "model": "fishnet_nano"}
    assert MultitaskTraining(resolve(get_task("multitask"), "scratch_small", settings)).task.stuff == {0: 4}
