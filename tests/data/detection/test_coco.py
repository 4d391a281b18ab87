"""COCO files: what real ones hold, what is wrong with some, and how it is mended."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from fishnet.data.detection.checks import check_detection, fix_coco
from fishnet.data.detection.coco import read_coco
from fishnet.data.detection.dataset import collate, open_detection
from fishnet.errors import FishnetError

Document = dict[str, Any]


def make(root: Path, change: Callable[[Document], None] | None = None, split: str = "train") -> Path:
    """Write a folder of three photos and four objects; `change` may spoil the document."""
    generator = np.random.default_rng(0)
    (root / split).mkdir(parents=True, exist_ok=True)
    images = []
    for number, (width, height) in enumerate([(60, 40), (50, 50), (40, 64)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{split}ö {number}.png")
        images.append({"id": 7 * number, "file_name": f"{split}ö {number}.png", "width": width, "height": height})
    triangle = [[10, 10, 30, 10, 10, 30]]
    document: Document = {
        "images": images,
        "categories": [{"id": 9, "name": "cat"}, {"id": 0, "name": "ant"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 9, "bbox": [10, 10, 20, 20], "area": 200, "segmentation": triangle},
            {"id": 2, "image_id": 14, "category_id": 90, "bbox": [0, 0, 40, 64], "area": 2560, "iscrowd": 0},
            {"id": 3, "image_id": 0, "category_id": 0, "bbox": [30.5, 5, 29.5, 30], "area": 800, "segmentation": []},
            {"id": 4, "image_id": 14, "category_id": 90, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 1,
             "segmentation": {"size": [64, 40], "counts": [0, 64 * 20, 64 * 20]}},
        ],
    }  # fmt: skip
    if change is not None:
        change(document)
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(document))
    return path


def test_objects_stand_with_their_images_and_classes_in_the_order_of_ids(tmp_path: Path) -> None:
    file = read_coco(make(tmp_path))
    assert file.classes == ["ant", "cat", "dog"]
    assert file.category_ids.tolist() == [0, 9, 90]
    assert [file.object_ids[file.objects(image)].tolist() for image in range(3)] == [[1, 3], [], [2, 4]]
    assert file.class_counts().tolist() == [1, 1, 1]
    assert file.without_outline == 2


def test_samples_hold_boxes_and_masks_without_crowds(tmp_path: Path) -> None:
    make(tmp_path)
    data = open_detection(tmp_path, "train")
    data.masks = True
    first, empty, last = (data[index] for index in range(3))
    assert first["image"].shape == (3, 40, 60)
    assert first["target"]["boxes"].tolist() == [[10, 10, 30, 30], [30.5, 5, 60, 35]]
    assert first["target"]["labels"].tolist() == [1, 0]
    triangle, box = first["target"]["masks"]
    assert (triangle[11, 11], triangle[29, 29]) == (1, 0)
    assert box.sum() == box[5:35, 30:60].sum() > 29 * 29
    assert first["target"]["outlined"].tolist() == [True, False]
    assert empty["target"]["boxes"].shape == (0, 4)
    assert empty["target"]["masks"].shape == (0, 50, 50)
    assert last["target"]["labels"].tolist() == [2]
    batch = collate([first, empty, last])
    assert [x.shape[-2:] for x in batch["image"]] == [(40, 60), (50, 50), (64, 40)]
    assert all(type(x) is torch.Tensor for target in batch["target"] for x in target.values())


def test_real_annotations_are_those_of_pycocotools(unpack: Callable[..., Path]) -> None:
    path = unpack("coco", mini=False) / "annotations" / "instances_val2017.json"
    file, oracle = read_coco(path), COCO(str(path))
    assert not file.problems
    assert len(file.object_ids) == len(oracle.anns)
    for index in range(0, len(file.object_ids), 17):
        entry = oracle.anns[int(file.object_ids[index])]
        assert file.boxes[index].tolist() == entry["bbox"]
        assert file.category_ids[file.class_of[index]] == entry["category_id"]
        assert file.image_ids[file.image_of[index]] == entry["image_id"]
        rle = oracle.annToRLE(entry)
        assert file.mask(index)["counts"] == rle["counts"]


SPOILT: list[tuple[str, Callable[[Document], None]]] = [
    ("negative box", lambda d: d["annotations"][0].update(bbox=[10, 10, -5, 5])),
    ("box not finite", lambda d: d["annotations"][0].update(bbox=[10, 10, math.nan, 5])),
    ("box outside", lambda d: d["annotations"][0].update(bbox=[100, 10, 5, 5])),
    ("box beyond the border", lambda d: d["annotations"][0].update(bbox=[40, 10, 50, 5])),
    ("box entry", lambda d: d["annotations"][0].pop("bbox")),
    ("unknown category id", lambda d: d["annotations"][0].update(category_id=5)),
    ("unknown image id", lambda d: d["annotations"][0].update(image_id=5)),
    ("duplicate annotation id", lambda d: d["annotations"][1].update(id=1)),
    ("duplicate image id", lambda d: d["images"].append(dict(d["images"][0]))),
    ("polygon", lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
    ("polygon", lambda d: d["annotations"][0].update(segmentation=[[10, 10, 30, 10, 10, 1e6]])),
    ("run lengths", lambda d: d["annotations"][3]["segmentation"].update(counts=[0, 64 * 20, 64 * 19])),
    ("run lengths", lambda d: d["annotations"][3]["segmentation"].update(counts="0")),
    ("area entry", lambda d: d["annotations"][0].update(area="12")),
    ("annotation entry", lambda d: d["annotations"][0].update(iscrowd="0")),
    ("mask size", lambda d: d["annotations"][3]["segmentation"].update(size=[40, 64])),
    ("missing image file", lambda d: d["images"][1].update(file_name="gone.png")),
]


@pytest.mark.parametrize(("kind", "change"), SPOILT, ids=[kind for kind, _ in SPOILT])
def test_what_cannot_be_used_is_refused_left_out_or_mended(
    kind: str, change: Callable[[Document], None], tmp_path: Path
) -> None:
    path = make(tmp_path, change)
    make(tmp_path, split="val")
    with pytest.raises(FishnetError, match=rf"1 problem: 1 x {kind};.*--bad-images skip"):
        open_detection(tmp_path, "train")
    data = open_detection(tmp_path, "train", bad_images="skip")
    samples = [data[index] for index in range(len(data))]
    assert all(bool((s["target"]["boxes"][:, 2:] > s["target"]["boxes"][:, :2]).all()) for s in samples)
    report = check_detection(tmp_path)
    assert kind in {problem.kind for problem in report.problems}
    assert report.exit_code == 1
    mended, changes = fix_coco(path, tmp_path / "train")
    assert len(changes) == 1, changes
    path.write_text(json.dumps(mended))
    assert not read_coco(path).problems
    open_detection(tmp_path, "train")


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The official train2017 holds two of them."""

    def flatten(document: Document) -> None:
        document["annotations"][0].update(bbox=[10, 10, 20, 0], id=918)
        document["annotations"][1].update(bbox=[3, 4, 0.0, 7], id=77)

    path = make(tmp_path, flatten)
    make(tmp_path, split="val")
    data = open_detection(tmp_path, "train")
    assert capsys.readouterr().out == ""  # whoever opens it prints the notes
    assert data.notes == [f"{path}: excluded 2 objects whose box has no area (annotations 918, 77)"]
    assert [len(data[index]["target"]["labels"]) for index in range(3)] == [1, 0, 0]
    report = check_detection(tmp_path)
    found = [problem for problem in report.problems if problem.kind == "box without area"]
    assert [(problem.severity, problem.path) for problem in found] == [
        ("note", "instances_train.json, annotation 918"),
        ("note", "instances_train.json, annotation 77"),
    ]
    mended, changes = fix_coco(path, tmp_path / "train")
    assert changes == ["2 boxes without area or outside the image removed"]
    path.write_text(json.dumps(mended))
    assert not read_coco(path).left_out
    make(tmp_path, lambda d: (flatten(d), d["annotations"][2].update(bbox=[200, 200, 5, 5])))
    with pytest.raises(FishnetError, match="1 problem: 1 x box outside"):
        open_detection(tmp_path, "train")


def test_a_clean_folder_is_clean(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make(tmp_path, split=split)
        (tmp_path / split / f"{split}ö 0.png").unlink()
        generator = np.random.default_rng(len(split))
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
            tmp_path / split / f"{split}ö 0.png"
        )
    kinds = [problem.kind for problem in check_detection(tmp_path).problems if problem.severity == "error"]
    assert kinds == ["duplicate across splits"] * 2


def test_damaged_and_wrong_sized_images_are_found(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, split="val")
    (tmp_path / "train" / "trainö 0.png").write_bytes(b"no image")
    Image.new("RGB", (20, 30)).save(tmp_path / "train" / "trainö 1.png")
    kinds = {problem.kind for problem in check_detection(tmp_path).problems}
    assert {"unreadable", "wrong size"} <= kinds
    data = open_detection(tmp_path, "train")
    for index in (0, 1):
        with pytest.raises(FishnetError, match=rf"trainö {index}\.png"):
            data[index]
    data.skip_bad = True
    assert data[0]["bad"].endswith("trainö 0.png")
    assert data[0]["target"]["labels"].tolist() == [2]
    assert len(data.bad_images) == 2
    data.bad_images.clear()

    def mix(sample: Any, draw: Any) -> Any:
        """Draw partners, bad ones among them: that is not the fault of the image itself."""
        for _ in range(20):
            draw()
        return sample

    data.transform = mix
    assert data[2]["bad"] == ""
    assert len(data.bad_images) == 2
    with pytest.raises(IndexError):
        data[3]


def test_sizes_are_compared_with_the_stored_and_the_upright_image(tmp_path: Path) -> None:
    """An exchanged width and height is an error unless EXIF turns the image; half a turn does not show in the size."""
    path = make(tmp_path, lambda d: [image.update(width=50, height=30) for image in d["images"]])
    for number, orientation in enumerate((1, 6, 3)):
        image = Image.new("RGB", (30, 50), (number, 0, 0))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / "train" / f"trainö {number}.png", exif=exif)
    found = {(p.kind, p.path, p.severity) for p in check_detection(tmp_path).problems}
    wrong = ("wrong size", "train/trainö 0.png", "error"), ("wrong size", "train/trainö 2.png", "error")
    assert {one for one in found if one[0] in ("wrong size", "rotated")} == set(wrong)
    mended, _ = fix_coco(path, tmp_path / "train")
    assert [(image["width"], image["height"]) for image in mended["images"]] == [(30, 50), (50, 30), (30, 50)]
    path.write_text(json.dumps(mended))
    data = open_detection(tmp_path, "train")
    assert [data[index]["image"].shape[1:] for index in range(3)] == [(50, 30), (30, 50), (50, 30)]
    found = {(p.kind, p.path, p.severity) for p in check_detection(tmp_path).problems}
    assert ("rotated", "train/trainö 2.png", "note") in found
    assert not {one for one in found if one[0] == "wrong size"}


def test_masks_that_do_not_fit_their_box_are_found(tmp_path: Path) -> None:
    make(tmp_path, lambda d: d["annotations"][0].update(bbox=[35, 5, 20, 20]))
    assert "mask disagrees" in {problem.kind for problem in check_detection(tmp_path).problems}


def test_real_sets_are_clean(mini: Callable[[str], Path]) -> None:
    for name in ("pennfudan", "pets3", "coco"):
        report = check_detection(mini(name))
        assert [p for p in report.problems if p.severity == "error"] == [], name
    assert "images" in report.describe()


def test_layouts_of_folders_and_splits(tmp_path: Path, mini: Callable[[str], Path]) -> None:
    assert len(open_detection(mini("coco"), "train")) == 32
    make(tmp_path)
    nested = tmp_path / "nested"
    shutil.copytree(tmp_path / "annotations", nested / "annotations")
    shutil.copytree(tmp_path / "train", nested / "train" / "images")
    assert open_detection(nested, "train")[0]["image"].shape == (3, 40, 60)
    with pytest.raises(FishnetError, match=r"no split 'vall'; available: train"):
        open_detection(tmp_path, "vall")
    with pytest.raises(FishnetError, match="contains no detection data"):
        open_detection(tmp_path / "train", "train")


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("categories"), "has no list `categories`"),
    (lambda d: d.update(categories=[]), "lists no categories"),
    (lambda d: d.update(images=[]), "lists no image"),
    (lambda d: d["categories"].append({"id": 9, "name": "again"}), "category id 9 is used twice"),
])  # fmt: skip
def test_files_beyond_use_are_refused(change: Callable[[Document], None], message: str, tmp_path: Path) -> None:
    make(tmp_path, change)
    with pytest.raises(FishnetError, match=message):
        open_detection(tmp_path, "train", bad_images="skip")


def test_other_categories_than_the_model_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(FishnetError, match=r"missing eel, unknown ant"):
        open_detection(tmp_path, "train", classes=["cat", "dog", "eel"])
    with pytest.raises(FishnetError, match="another order"):
        open_detection(tmp_path, "train", classes=["cat", "dog", "ant"])
