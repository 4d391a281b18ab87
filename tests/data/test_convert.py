"""Boxes survive the way through every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.data.coco import read_coco
from fishnet.data.convert import convert_boxes, detect_layout
from fishnet.errors import FishnetError, UsageError


def boxes(root: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class and box of every object by image name, crowds left out."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        file = read_coco(path)
        for index, name in enumerate(file.file_names):
            own = [i for i in file.objects(index).tolist() if not file.crowd[i]]
            found[f"{path.stem}/{name}"] = [(file.classes[file.class_of[i]], file.boxes[i].tolist()) for i in own]
    return found


@pytest.mark.parametrize("layout", ["voc", "yolo"])
@pytest.mark.parametrize("name", ["coco", "pets3"])
def test_boxes_come_back_within_half_a_pixel(
    layout: str, name: str, mini: Callable[[str], Path], tmp_path: Path
) -> None:
    source = mini(name)
    report = convert_boxes(source, tmp_path / "there", layout)  # type: ignore[arg-type]
    assert detect_layout(tmp_path / "there") == layout
    convert_boxes(tmp_path / "there", tmp_path / "back", "coco")
    before, after = boxes(source), boxes(tmp_path / "back")
    assert sum(report.images.values()) == len(before)
    assert set(after) == set(before)
    for image, objects in before.items():
        assert [label for label, _ in after[image]] == [label for label, _ in objects]
        for (_, found), (_, expected) in zip(after[image], objects, strict=True):
            ends = [np.add(box, np.array([0, 0, *box[:2]])) for box in (found, expected)]
            # an object thinner than half a pixel still gets one
            slack = max(0.0, 1 - min(expected[2:])) if layout == "voc" else 0.0
            assert np.abs(ends[0] - ends[1]).max() <= 0.5 + slack + 1e-4


def test_images_are_linked_or_copied(mini: Callable[[str], Path], tmp_path: Path) -> None:
    convert_boxes(mini("pets3"), tmp_path / "copied", "yolo", copy=True)
    picture = next((tmp_path / "copied" / "images" / "train").iterdir())
    assert picture.stat().st_nlink == 1
    convert_boxes(tmp_path / "copied", tmp_path / "linked", "voc")
    assert (tmp_path / "linked" / "JPEGImages" / picture.name).samefile(picture)


def yolo(root: Path, line: str) -> Path:
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(root / "images" / "train" / "ä b.png")
    (root / "labels" / "train" / "ä b.txt").write_text(line)
    (root / "data.yaml").write_text("names: {0: ant, 1: bee}\n")
    return root


def test_a_yolo_line_is_a_box(tmp_path: Path) -> None:
    convert_boxes(yolo(tmp_path / "yolo", "1 0.5 0.5 0.25 0.5\n\n"), tmp_path / "coco", "coco")
    document = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text("utf-8"))
    assert document["annotations"][0]["bbox"] == [15, 5, 10, 10]
    assert [c["name"] for c in document["categories"]] == ["ant", "bee"]
    assert document["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize("line", ["2 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2", "cat 0.5 0.5 0.2 0.2"])
def test_damaged_yolo_lines_are_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"ä b\.txt, line 1: expected a class below 2"):
        convert_boxes(yolo(tmp_path / "yolo", line), tmp_path / "coco", "coco")


def voc(root: Path, text: str) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    Image.new("RGB", (40, 20)).save(root / "JPEGImages" / "a.jpg")
    (root / "Annotations" / "a.xml").write_text(text)
    return root


def test_a_voc_box_counts_pixels_from_one(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>"
    root = voc(tmp_path / "voc", f"<annotation><object><name>cat</name>{box}</object></annotation>")
    convert_boxes(root, tmp_path / "coco", "coco")
    assert boxes(tmp_path / "coco") == {"instances_train/a.jpg": [("cat", [0, 0, 40, 20])]}


@pytest.mark.parametrize(("text", "message"), [
    ("<annotation><object><name>cat</name></object></annotation>", "no name or no box"),
    ("<annotation>", "no valid XML"),
    ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares a document type"),
])  # fmt: skip
def test_damaged_voc_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=rf"a\.xml.*{message}"):
        convert_boxes(voc(tmp_path / "voc", text), tmp_path / "coco", "coco")


def test_a_full_folder_and_a_known_layout_are_refused(mini: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        convert_boxes(mini("coco"), tmp_path / "full", "voc")
    with pytest.raises(UsageError, match="has the layout coco already"):
        convert_boxes(mini("coco"), tmp_path / "out", "coco")
    with pytest.raises(FishnetError, match="no known layout"):
        convert_boxes(tmp_path / "full", tmp_path / "out", "coco")
