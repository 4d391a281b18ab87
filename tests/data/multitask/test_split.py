from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fishnet.data.detection.split import split_coco
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.multitask.split import can_split, split_multitask
from fishnet.data.segmentation.split import split_segmentation
from fishnet.errors import FishnetError, UsageError
from tests.data.multitask.makers import labels_of, multitask

KNOWN = ("irp", "i", "r", "p", "ir", "rp", "ip", "") * 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return multitask(tmp_path / "data", KNOWN, splits=("train",))


def files(root: Path) -> dict[str, bytes]:
    """Return the content of all files by their path below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_file_names_relative_to_the_data_folder_follow_the_images(folder: Path) -> None:
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["file_name"] = f"train/images/{image['file_name']}"
    path.write_text(json.dumps(document))
    split_multitask(folder, val=0.4)
    assert open_multitask(folder, "train").known.sum(0).tolist() == [12, 12, 12]
    assert open_multitask(folder, "val").known.sum(0).tolist() == [8, 8, 8]
    split_multitask(folder, undo=True)
    assert json.loads(path.read_text()) == document


def test_every_label_goes_with_its_image(folder: Path) -> None:
    before = files(folder)
    assert can_split(folder)
    report = split_multitask(folder, val=0.4)
    found: list[int] = []
    sizes = {}
    for name in ("train", "val"):
        split = open_multitask(folder, name)
        sizes[name] = split.known.sum(0)
        for index, path in enumerate(split.paths):
            image, labels = split.load(index)
            number = int(path.stem)
            expected = labels_of(number, KNOWN[number])
            found.append(number)
            assert path.parent == folder.resolve() / name / "images"
            assert image.size == (40, 36)
            assert labels.levels == expected.levels
            assert labels.label == expected.label
            if expected.label_map is not None:
                assert np.array_equal(labels.label_map, expected.label_map)
            if expected.objects is not None:
                assert labels.objects is not None
                assert np.array_equal(labels.objects.boxes, expected.objects.boxes)
    assert sorted(found) == [number for number, known in enumerate(KNOWN) if known]
    # images of every level, and in val 40 % of them, as 20 of the 40 images have each
    assert sizes["train"].tolist() == [12, 12, 12]
    assert sizes["val"].tolist() == [8, 8, 8]
    contents = {name: text for name, text in files(folder).items() if name.startswith(("train", "val"))}
    wanted = [text for name, text in before.items() if name.startswith("train")]
    assert Counter(contents.values()) == Counter(wanted)
    assert sum(report.plan.images) == 35
    lines = report.describe().splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("image:")] == [["image:", "day"], ["image:", "night"]]


def test_a_split_is_the_same_every_time_and_can_be_undone(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    before = files(folder)
    split_multitask(folder, seed=3)
    split_multitask(other, seed=3)
    assert files(folder) == files(other)
    split_multitask(folder, undo=True)
    assert files(folder) == before


def test_an_interrupted_split_is_completed(folder: Path, tmp_path: Path) -> None:
    straight = Path(shutil.copytree(folder, tmp_path / "straight"))
    split_multitask(straight)
    plan = json.loads((straight / "split.json").read_text())
    (folder / "split.json").write_text(json.dumps({**plan, "done": False}))
    old, target = plan["moves"][0]
    (folder / target).parent.mkdir(parents=True)
    (folder / old).rename(folder / target)  # as far as the first call came
    report = split_multitask(folder)
    assert report.resumed
    assert files(folder) == files(straight)


def test_what_cannot_be_split_is_one_line(folder: Path) -> None:
    for split, task in ((split_coco, "detection"), (split_segmentation, "segmentation")):
        with pytest.raises(UsageError, match=rf"a split for {task} would divide one.*--task multitask") as raised:
            split(folder)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--val must be between 0 and 1"):
        split_multitask(folder, val=1)
    split_multitask(folder)
    with pytest.raises(FishnetError, match="already has a validation split"):
        split_multitask(folder)
