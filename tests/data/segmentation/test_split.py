"""A val split of images with label maps: stratified, safe, undone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.data.classification.split import can_split as classification_can_split
from fishnet.data.detection.split import can_split as detection_can_split
from fishnet.data.multitask.split import can_split as multitask_can_split
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.data.segmentation.split import can_split, split_segmentation
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import encode, put
from tests.data.segmentation.makers import data_folder, png
from tests.data.segmentation.test_dataset import voc_folder


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rare(root: Path, count: int = 40) -> Path:
    """Make class 2 occur in 4 images only, and class 1 in half of them."""
    for number in range(count):
        labels = np.zeros((36, 40), np.uint8)
        labels[5:9] = 1 if number % 2 else 0
        labels[20:24] = 2 if number < 4 else 0
        put(root / "train" / "labels" / f"{number:03d}.png", png(labels))
    return root


@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_on_both_sides(tmp_path: Path, seed: int) -> None:
    root = rare(data_folder(tmp_path, {"train": 40}))
    before = contents(root)
    report = split_segmentation(root, val=0.25, seed=seed, progress=False)
    names = {side: sorted(p.stem for p in (root / side / "images").iterdir()) for side in ("train", "val")}
    assert (len(names["train"]), len(names["val"])) == (30, 10)
    for side in names:
        assert names[side] == sorted(path.stem for path in (root / side / "labels").iterdir())
    held_out = [np.array(Image.open(root / "val" / "labels" / f"{name}.png")) for name in names["val"]]
    in_val = {k: sum(bool((labels == k).any()) for labels in held_out) for k in range(3)}
    assert in_val[0] == 10
    assert 4 <= in_val[1] <= 6
    assert in_val[2] == 1
    table = report.describe().splitlines()
    assert table[1].split() == ["sky", "30", "10"]
    assert table[3].split() == ["car", "3", "1"]
    assert table[4].split() == ["all", "30", "10"]
    split_segmentation(root, undo=True)
    assert contents(root) == before
    assert not (root / "val").exists()


def test_a_folder_without_splits_becomes_train_and_val(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data_folder(tmp_path / "data", {"": 10})
    shutil.copytree(root, tmp_path / "copied")
    before = contents(root)
    split_segmentation(root, progress=False)
    assert "moving 20 files within" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir()) == ["classes.json", "split.json", "train", "val"]
    assert [len(open_segmentation(root, split)) for split in ("train", "val")] == [8, 2]
    report = split_segmentation(root, undo=True)
    assert report.describe() == f"{root}: 20 files are back where they were before the split"
    assert contents(root) == before
    other = tmp_path / "copied"
    split_segmentation(other, copy=True, progress=False)
    assert len(list((other / "images").iterdir())) == 10
    assert [len(open_segmentation(other, split)) for split in ("train", "val")] == [8, 2]


def test_an_interrupted_split_is_completed(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"train": 20})
    split_segmentation(root, progress=False)
    plan = json.loads((root / "split.json").read_text())
    after = {name: content for name, content in contents(root).items() if name != "split.json"}
    for old, new in plan["moves"][3:]:
        (root / new).rename(root / old)
    (root / "split.json").write_text(json.dumps({**plan, "done": False}))
    report = split_segmentation(root, val=0.5, seed=9, progress=False)
    assert report.resumed
    assert {name: content for name, content in contents(root).items() if name != "split.json"} == after


def test_equal_pictures_stay_together_and_unlabeled_ones_in_train(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"train": 20})
    picture = (root / "train" / "images" / "000.jpg").read_bytes()
    for number in range(1, 6):
        (root / "train" / "images" / f"{number:03d}.jpg").write_bytes(picture)
    put(root / "train" / "images" / "unlabeled.png", encode(Image.new("RGB", (40, 36)), "PNG"))
    for seed in range(4):
        split_segmentation(root, val=0.3, seed=seed, progress=False)
        same = [side for side in ("train", "val") for n in range(6) if (root / side / "images" / f"00{n}.jpg").exists()]
        assert len(same) == 6
        assert len(set(same)) == 1
        assert (root / "train" / "images" / "unlabeled.png").exists()
        split_segmentation(root, undo=True)


def test_splits_that_are_refused(tmp_path: Path) -> None:
    root = data_folder(tmp_path / "data", {"train": 4, "val": 2})

    def message(root: Path, **options) -> str:
        with pytest.raises(FishnetError) as caught:
            split_segmentation(root, progress=False, **options)
        return str(caught.value)

    before = contents(root)
    assert "already has a validation split" in message(root)
    assert "--val must be between 0 and 1" in message(root, val=1.0)
    assert "there is nothing to undo" in message(root, undo=True)
    shutil.rmtree(root / "val")
    with pytest.raises(UsageError, match="--copy would leave the val images in train"):
        split_segmentation(root, copy=True, progress=False)
    (root / "train" / "labels" / "001.png").write_bytes(b"no image")
    assert "cannot use the label map" in message(root)
    assert "`fishnet data convert" in message(voc_folder(tmp_path / "voc"))
    assert contents(root).keys() == {name for name in before if not name.startswith("val")}


def test_each_folder_is_split_by_one_task(tmp_path: Path, mini: Callable[[str], Path]) -> None:
    """`fishnet data split DIR` without a task asks every task whether the layout is its own."""
    ours = data_folder(tmp_path / "ours", {"train": 4})
    unsplit = data_folder(tmp_path / "unsplit", {"": 4})
    for root, wanted in (
        (ours, "s"),
        (unsplit, "s"),
        (mini("pets3"), "m"),
        (mini("pennfudan"), "d"),
        (mini("cifar10"), "c"),
        (tmp_path / "no", ""),
    ):
        fits = {"s": can_split(root), "d": detection_can_split(root), "c": classification_can_split(root)}
        fits["m"] = multitask_can_split(root)
        assert "".join(name for name, fit in fits.items() if fit) == wanted
