from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO
from sklearn.datasets import load_digits, load_sample_images

from fishnet.cli import main
from fishnet.data import scenes
from fishnet.data.classification.dataset import open_classification
from fishnet.data.detection.dataset import open_detection
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.scenes import dominant, make_scene, write_scenes
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=40, val=16).out


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    first = make_scene(3, "train", 7)
    make_scene(3, "train", 8)
    again = make_scene(3, "train", 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    others = [make_scene(4, "train", 7), make_scene(3, "val", 7), make_scene(3, "train", 8)]
    assert not any(np.array_equal(first.image, other.image) for other in others)


def test_the_number_of_images_changes_none_of_them(folder: Path, tmp_path: Path) -> None:
    fewer = write_scenes(tmp_path / "fewer", train=3, val=2).out
    written = sorted(path.relative_to(fewer) for path in fewer.glob("*/*/*"))
    assert len(written) == 10
    assert all((fewer / path).read_bytes() == (folder / path).read_bytes() for path in written)


def test_splits_share_neither_digits_nor_photographs() -> None:
    train, val = scenes._material("train"), scenes._material("val")
    for digit in range(10):
        ours = {image.tobytes() for image in train.digits[digit]}
        assert not ours & {image.tobytes() for image in val.digits[digit]}
    assert sum(len(one) for part in (train, val) for one in part.digits) == len(load_digits().images)
    for left, right, whole in zip(train.photos, val.photos, load_sample_images().images, strict=True):
        assert np.array_equal(np.concatenate([left, right], axis=1), whole)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_of_all_levels_agree(folder: Path, split: str) -> None:
    coco = COCO(str(folder / "annotations" / f"instances_{split}.json"))
    for number, entry in coco.imgs.items():
        image = np.asarray(Image.open(folder / split / "images" / entry["file_name"]), np.float32)
        labels = np.asarray(Image.open((folder / split / "labels" / entry["file_name"]).with_suffix(".png")))
        expected = np.zeros((128, 128), int)
        largest, total = np.zeros(10), np.zeros(10)
        assert image.shape == (128, 128, 3)
        for one in coco.imgToAnns[number]:
            mask = coco.annToMask(one).astype(bool)
            digit = int(coco.cats[one["category_id"]]["name"])
            assert not expected[mask].any()  # the visible parts of digits do not overlap
            expected[mask] = digit + 1
            rows, columns = np.nonzero(mask)
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["bbox"] == [columns.min(), rows.min(), *size]
            assert one["area"] == mask.sum() == codec.area(coco.annToRLE(one))
            largest[digit] = max(largest[digit], mask.sum())
            total[digit] += mask.sum()
            # a digit has one color: noise and the soft edge aside, its pixels are equal
            spread = np.abs(image[mask] - np.median(image[mask], axis=0)).mean(1)
            assert np.median(spread) < 12
        assert np.array_equal(labels, expected)
        label = entry["label"]
        for areas in (largest, total):
            assert areas.argmax() == label
            assert areas[label] >= 1.5 * np.delete(areas, label).max()


@pytest.mark.parametrize(
    ("digits", "areas", "expected"),
    [
        ([3], [10], 3),
        ([3, 5], [15, 10], 3),
        ([3, 5], [14, 10], None),
        ([3, 3, 5], [9, 9, 10], None),  # 3 has more pixels, but the largest digit is the 5
        ([3, 5, 5], [20, 9, 9], None),
        ([3, 3, 5], [20, 1, 12], 3),
    ],
)
def test_the_class_of_an_image_stands_out(digits: list[int], areas: list[int], expected: int | None) -> None:
    assert dominant(np.array(digits), np.array(areas)) == expected


def test_scenes_vary() -> None:
    found = [make_scene(0, "train", index) for index in range(150)]
    assert {scene.label for scene in found} == set(range(10))
    assert {len(scene.digits) for scene in found} == {1, 2, 3, 4}
    heights = [np.ptp(np.nonzero(mask)[0]) + 1 for scene in found for mask in scene.masks]
    assert np.percentile(heights, 95) > 1.6 * np.percentile(heights, 5)
    covered = [scene for scene in found if (scene.masks.sum() > 0) and len(scene.digits) > 1]
    boxes = [
        codec.toBbox(codec.encode(np.asfortranarray(s.masks.transpose(1, 2, 0).astype(np.uint8)))) for s in covered
    ]
    overlaps = [codec.iou(box, box, [0] * len(box)) - np.eye(len(box)) for box in boxes]
    assert sum((one > 0.1).any() for one in overlaps) > len(covered) / 10


def test_two_thousand_take_well_under_a_minute(tmp_path: Path) -> None:
    make_scene(0, "train", 0)
    make_scene(0, "val", 0)
    started = time.process_time()
    write_scenes(tmp_path / "scenes", train=60, val=40)
    assert (time.process_time() - started) * 20 < 60


def test_every_task_reads_its_level(folder: Path) -> None:
    classes = [str(digit) for digit in range(10)]
    assert open_classification(folder, "train").classes == open_detection(folder, "train").classes == classes
    assert open_segmentation(folder, "train").classes == ["background", *classes]
    assert [len(opened(folder, "val")) for opened in (open_classification, open_detection, open_segmentation)] == [
        16
    ] * 3
    assert open_multitask(folder, "train").counts() == {"image+region+pixel": 40}


def test_the_command_replaces_its_own_data_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    make = ["data", "make", "scenes", str(out), "--val", "2", "--size", "64"]
    assert main([*make, "--train", "5"]) == 0
    assert main([*make, "--train", "3", "--seed", "1"]) == 0
    assert len(list((out / "train" / "images").iterdir())) == len(list((out / "train" / "labels").iterdir())) == 3
    with Image.open(out / "val" / "images" / "00001.jpg") as image:
        assert image.size == (64, 64)
    assert json.loads((out / "scenes.json").read_text())["scenes"]["seed"] == 1
    assert "train 3, val 2 images" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert main(["data", "make", "scenes", str(tmp_path / "other")]) == 2
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]
    assert "other is not empty; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scene", "out"], "unknown data set 'scene'. Did you mean 'scenes'? Known are: scenes"),
        (["scenes", "out", "--train", "0"], "--train must be at least 1 image, not 0"),
        (["scenes", "out", "--size", "16"], "--size must be at least 32 pixels, not 16"),
        (["scenes", "out", "--seed", "-1"], "--seed must not be negative, but is -1"),
        (["scenes"], "DIRECTORY is missing"),
    ],
)
def test_bad_usage(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "make", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_scikit_learn_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    scenes._material.cache_clear()
    with pytest.raises(UsageError, match=r"fishnet-vision\[demo\]"):
        write_scenes(tmp_path / "out")
    assert not (tmp_path / "out").exists()
