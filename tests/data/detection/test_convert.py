"""Boxes survive the way through every layout."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fishnet.commands.data_convert import data_convert
from fishnet.data.detection.coco import read_coco
from fishnet.data.detection.convert import can_convert, convert_boxes, detect_layout
from fishnet.data.detection.dataset import open_detection
from fishnet.data.images import read_image, turned_box
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.detection.evaluator import coco_results, evaluate_detections


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


@pytest.mark.parametrize("line", ["2 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2", "cat 0.5 0.5 0.2 0.2", "0 0.5 nan 0.2 0.2"])
def test_damaged_yolo_lines_are_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"^1 line of .*a class below 2 and four numbers.*ä b\.txt:1 "):
        convert_boxes(yolo(tmp_path / "yolo", line), tmp_path / "coco", "coco")


def test_classes_of_yolo_are_read_by_their_numbers(tmp_path: Path) -> None:
    """Numbers in quotes were sorted as text, 10 before 2, and numbers that do not count from 0 were not noticed."""
    letters = "abcdefghijkl"
    root = yolo(tmp_path / "yolo", "10 0.5 0.5 0.25 0.5\n2 0.5 0.5 0.5 0.5\n")
    quoted = [f"'{number}': {letter}" for number, letter in enumerate(letters)]
    (root / "data.yaml").write_text(f"names: {{{', '.join(quoted)}}}\n")
    assert [label for label, _ in boxes_of(root)] == ["k", "c"]
    (root / "data.yaml").write_text("names: {1: ant, 2: bee}\n")
    with pytest.raises(FishnetError, match=r"data\.yaml.*must be numbered from 0 to 1, not 1, 2"):
        convert_boxes(root, tmp_path / "none", "coco")


def boxes_of(root: Path) -> list[tuple[str, list[float]]]:
    convert_boxes(root, root / "coco", "coco")
    return boxes(root / "coco")["instances_train/ä b.png"]


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
    ("<annotation>", "not valid XML"),
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
    with pytest.raises(UsageError, match="already has the layout coco"):
        convert_boxes(mini("coco"), tmp_path / "out", "coco")
    with pytest.raises(FishnetError, match="no known layout"):
        convert_boxes(tmp_path / "full", tmp_path / "out", "coco")


BOX = "<bndbox><xmin>11</xmin><ymin>5</ymin><xmax>30</xmax><ymax>16</ymax></bndbox>"


def test_difficult_objects_of_voc_are_neither_trained_on_nor_judged(tmp_path: Path) -> None:
    other = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox>"
    objects = [f"<object><name>cat</name><difficult>{n}</difficult>{box}</object>" for n, box in ((1, BOX), (0, other))]
    report = convert_boxes(
        voc(tmp_path / "voc", f"<annotation>{''.join(objects)}</annotation>"), tmp_path / "coco", "coco"
    )
    assert report.notes == ["1 difficult objects are written with iscrowd 1: ignored in training and evaluation"]
    data = open_detection(tmp_path / "coco", "train")
    assert data[0]["target"]["boxes"].tolist() == [[0, 0, 8, 8]]

    def ap(boxes: list[list[float]]) -> float:
        found = {"boxes": boxes, "labels": [0] * len(boxes), "scores": [0.9 - 0.1 * n for n in range(len(boxes))]}
        return evaluate_detections(data.file, {0: coco_results(data.file, 0, found)}).metrics["box_ap"]

    easy, hard = [0.0, 0.0, 8.0, 8.0], [10.0, 4.0, 30.0, 16.0]
    assert ap([easy]) == ap([hard, easy]) == pytest.approx(1)
    assert ap([hard]) == 0
    assert ap([[31.0, 0.0, 39.0, 9.0], easy]) == pytest.approx(0.5)
    convert_boxes(tmp_path / "coco", tmp_path / "back", "voc")
    tree = ET.parse(tmp_path / "back" / "Annotations" / "a.xml")
    assert [entry.findtext("difficult") for entry in tree.iter("object")] == ["1", "0"]
    report = convert_boxes(tmp_path / "coco", tmp_path / "yolo", "yolo")
    assert report.boxes == 1
    assert len((tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()) == 1


def photo(path: Path, orientation: int, size: tuple[int, int] = (40, 20)) -> tuple[Path, list[float]]:
    """Save a black photo with a white rectangle that its EXIF orientation turns; return its upright box."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[3:9, 5:15] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        x1, y1, x2, y2 = ImageOps.exif_transpose(stored).getbbox()
    return path, [x1, y1, x2 - x1, y2 - y1]


STORED = [5.0, 3.0, 10.0, 6.0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_box_is_that_of_the_turned_pixels(orientation: int, tmp_path: Path) -> None:
    _, expected = photo(tmp_path / "a.png", orientation)
    assert list(turned_box(STORED, (40, 20), orientation)) == expected


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_yolo_shares_are_those_of_the_upright_image(orientation: int, tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo", "")
    path, (x, y, w, h) = photo(root / "images" / "train" / "ä b.png", orientation)
    width, height = read_image(path).size
    shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
    (root / "labels" / "train" / "ä b.txt").write_text("0 " + " ".join(map(str, shares)))
    convert_boxes(root, tmp_path / "coco", "coco")
    sample = open_detection(tmp_path / "coco", "train")[0]
    assert_white(sample)
    convert_boxes(tmp_path / "coco", tmp_path / "back", "yolo")
    again = (tmp_path / "back" / "labels" / "train" / "ä b.txt").read_text().split()
    assert [float(share) for share in again[1:]] == pytest.approx(shares, abs=1e-6)


def assert_white(sample: dict[str, Any]) -> None:
    """The box is exactly the white part of the image."""
    x1, y1, x2, y2 = sample["target"]["boxes"][0].round().int().tolist()
    white = sample["image"][0] > 127
    assert int(white[y1:y2, x1:x2].sum()) == int(white.sum()) == (x2 - x1) * (y2 - y1) == 60


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_the_size_in_a_voc_file_tells_whether_its_boxes_are_upright(
    frame: str, orientation: int, tmp_path: Path
) -> None:
    turned = frame == "upright" and orientation != 1
    width, height = (20, 40) if turned else (40, 20)
    root = voc(tmp_path / "voc", "")
    _, box = photo(root / "JPEGImages" / "a.png", orientation)
    x, y, w, h = box if turned else STORED
    corners = "".join(
        f"<{side}>{value:.0f}</{side}>"
        for side, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h))
    )
    (root / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.png</filename><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    report = convert_boxes(root, tmp_path / "coco", "coco")
    assert report.notes == []
    assert_white(open_detection(tmp_path / "coco", "train")[0])
    # a COCO file made for the stored pixels is turned on its way out
    path = tmp_path / "coco" / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"][0].update(width=40, height=20)
    document["annotations"][0]["bbox"] = STORED
    path.write_text(json.dumps(document))
    assert_white(open_detection(tmp_path / "coco", "train")[0])
    convert_boxes(tmp_path / "coco", tmp_path / "yolo", "yolo")
    convert_boxes(tmp_path / "yolo", tmp_path / "again", "coco")
    assert_white(open_detection(tmp_path / "again", "train")[0])


def test_sizes_that_are_no_images_own_are_said(tmp_path: Path) -> None:
    text = (
        f"<annotation><size><width>7</width><height>9</height></size><object><name>a</name>{BOX}</object></annotation>"
    )
    report = convert_boxes(voc(tmp_path / "voc", text), tmp_path / "coco", "coco")
    assert report.notes == ["1 files state a wrong <size>; the size of the image is used"]
    path = tmp_path / "coco" / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"width": 40', '"width": 41'))
    with pytest.raises(FishnetError, match=r"a\.jpg has 40x20 pixels, but instances_train\.json states 41x20"):
        convert_boxes(tmp_path / "coco", tmp_path / "yolo", "yolo")


def test_annotations_of_stored_pixels_load_with_transparency(tmp_path: Path) -> None:
    """The stored pixels are read as any image is: transparency on white, not on black."""
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / "a.png", exif=exif)
    document = {"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}], "annotations": [],
                "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    sample = open_detection(tmp_path, "train").sample(0)
    assert sample["image"].shape == (3, 20, 40)
    assert int(sample["image"].min()) == 255


def test_folders_of_other_names_and_a_val(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for number in range(10):
        label = "cat" if number < 6 else "dog"
        photo(root / "pictures" / f"{number}.png", 1)
        (root / "boxes").mkdir(exist_ok=True)
        (root / "boxes" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.png</filename><object><name>{label}</name>{BOX}</object></annotation>"
        )
    with pytest.raises(UsageError, match=r"no task recognizes.*--images and --annotations"):
        data_convert(str(root), str(tmp_path / "coco"))
    with pytest.raises(FishnetError, match=r"no known layout.*--images and --annotations"):
        data_convert(str(root), str(tmp_path / "coco"), task="detection")
    with pytest.raises(FishnetError, match="has no folder pics"):
        data_convert(str(root), str(tmp_path / "coco"), images="pics", annotations="boxes")
    with pytest.raises(UsageError, match="--val must be between 0 and 1"):
        data_convert(str(root), str(tmp_path / "coco"), task="detection", val=2)
    names = {"images": "pictures", "annotations": "boxes"}
    data_convert(str(root), str(tmp_path / "coco"), val=0.4, seed=3, **names)  # type: ignore[arg-type]
    train, val = (open_detection(tmp_path / "coco", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 4)
    assert train.file.class_counts().tolist() == [4, 2] or train.file.class_counts().tolist() == [3, 3]
    with pytest.raises(UsageError, match=r"needs a source with one split.*has train, val"):
        data_convert(str(tmp_path / "coco"), str(tmp_path / "out"), to="yolo", val=0.2)
    with pytest.raises(UsageError, match="are for VOC and YOLO"):
        data_convert(str(tmp_path / "coco"), str(tmp_path / "out"), to="yolo", images="train")
    data_convert(str(tmp_path / "coco"), str(tmp_path / "yolo"), to="yolo")
    (tmp_path / "yolo" / "images").rename(tmp_path / "yolo" / "photos")
    (tmp_path / "yolo" / "labels").rename(tmp_path / "yolo" / "shares")
    report = data_convert(
        str(tmp_path / "yolo"), str(tmp_path / "back"), to="coco", images="photos", annotations="shares"
    )
    assert report.images == {"train": 6, "val": 4}
    assert report.boxes == 10


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("yolo", "labels/{split}/{stem}.txt"),
        ("yolo", "classes.txt"),
        ("voc", "ImageSets/Main/train.txt"),
        ("voc", "classes.txt"),
    ],
)
def test_text_of_another_encoding_is_named(layout: str, name: str, mini: Callable[[str], Path], tmp_path: Path) -> None:
    convert_boxes(mini("pets3"), tmp_path / "there", layout)  # type: ignore[arg-type]
    (tmp_path / "there" / "data.yaml").unlink(missing_ok=True)
    if layout == "yolo":
        (tmp_path / "there" / "classes.txt").write_text("a\nb\nc\n")
    image = min((tmp_path / "there").rglob("*.jpg"))
    path = tmp_path / "there" / name.format(stem=image.stem, split=image.parent.name)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(FishnetError, match=rf"^{re.escape(str(path))} is not UTF-8 text"):
        convert_boxes(tmp_path / "there", tmp_path / "out", "coco")


def as_roboflow(source: Path, root: Path) -> Path:
    """Write a YOLO folder in the layout of Roboflow: <split>/images and <split>/labels, valid for val."""
    for split, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            shutil.copytree(source / kind / split, root / name / kind)
    shutil.copy(source / "data.yaml", root / "data.yaml")
    return root


@pytest.mark.parametrize("by_file", [False, True])
def test_the_layout_of_roboflow_is_yolo(by_file: bool, mini: Callable[[str], Path], tmp_path: Path) -> None:
    convert_boxes(mini("pennfudan"), tmp_path / "yolo", "yolo")
    root = as_roboflow(tmp_path / "yolo", tmp_path / "roboflow")
    source = root / "data.yaml" if by_file else root
    assert can_convert(source)
    report = data_convert(str(source), str(tmp_path / "coco"))
    data_convert(str(tmp_path / "yolo"), str(tmp_path / "other"))
    for split in ("train", "val"):
        name = f"annotations/instances_{split}.json"
        assert json.loads((tmp_path / "coco" / name).read_text()) == json.loads((tmp_path / "other" / name).read_text())
    assert set(report.images) == {"train", "val"}


def as_roboflow_coco(source: Path, root: Path) -> Path:
    """Write a COCO folder in the layout of Roboflow, with its category above all others."""
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(image_folder_of(source, split), root / name)
        document = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        for one in document["images"]:
            one["file_name"] = Path(one["file_name"]).name
        for one in document["categories"]:
            one["supercategory"] = "people"
        document["categories"].insert(0, {"id": 0, "name": "people", "supercategory": "none"})
        (root / name / "_annotations.coco.json").write_text(json.dumps(document))
    return root


def image_folder_of(source: Path, split: str) -> Path:
    return next(folder for folder in (source / split / "images", source / split) if folder.is_dir())


def test_the_coco_layout_of_roboflow_keeps_its_outlines(mini: Callable[[str], Path], tmp_path: Path) -> None:
    source = mini("pennfudan")
    root = as_roboflow_coco(source, tmp_path / "roboflow")
    with pytest.raises(
        FishnetError,
        match=r"has COCO annotations in another place .train._annotations.*; `fishnet data convert .*roboflow_coco`",
    ):
        open_detection(root, "train")
    assert can_convert(root)
    report = data_convert(str(root), str(tmp_path / "coco"))
    assert "the super-category without objects" in report.describe()
    for split in ("train", "val"):
        found, expected = (open_detection(folder, split) for folder in (tmp_path / "coco", source))
        assert found.classes == expected.classes == ["person"]
        assert report.images[split] == len(found) == len(expected)
        for index in range(len(found)):
            found.masks = expected.masks = True
            one, other = found[index], expected[index]
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["target"]["masks"], other["target"]["masks"])
            assert torch.equal(one["target"]["boxes"], other["target"]["boxes"])


def test_a_category_of_roboflow_with_objects_stays(mini: Callable[[str], Path], tmp_path: Path) -> None:
    root = as_roboflow_coco(mini("pennfudan"), tmp_path / "roboflow")
    path = root / "valid" / "_annotations.coco.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(document))
    data_convert(str(root), str(tmp_path / "coco"))
    assert open_detection(tmp_path / "coco", "train").classes == ["people", "person"]


def test_damaged_folders_of_roboflow_are_named(mini: Callable[[str], Path], tmp_path: Path) -> None:
    root = as_roboflow_coco(mini("pennfudan"), tmp_path / "roboflow")
    with pytest.raises(UsageError, match="convert it with --to coco first, then that to yolo"):
        data_convert(str(root), str(tmp_path / "yolo"), to="yolo")
    next((root / "train").glob("*.*g")).unlink()
    with pytest.raises(FishnetError, match=r"_annotations.coco.json names 1 image of .* does not contain"):
        data_convert(str(root), str(tmp_path / "one"))
    (root / "train" / "_annotations.coco.json").write_text('{"images": 3}')
    with pytest.raises(FishnetError, match="is not a COCO annotation file"):
        data_convert(str(root), str(tmp_path / "two"))


def test_all_damaged_yolo_lines_are_counted_and_five_are_shown(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo", "\n".join(["0 0.5 0.5 0.2 0.2", "", *["7 0.5 0.5 0.2 0.2"] * 6, "x"]))
    with pytest.raises(FishnetError) as caught:
        convert_boxes(root, tmp_path / "coco", "coco")
    assert str(caught.value).startswith("7 lines of the label files")
    assert re.findall(r"b\.txt:(\d+)", str(caught.value)) == ["3", "4", "5", "6", "7"]
    assert not (tmp_path / "coco").exists()


def document_of(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "annotations" / "instances_train.json").read_text("utf-8"))
    return document


def test_outlines_of_yolo_become_polygons_and_boxes_stay_boxes(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo", "1 0.2 0.3 0.6 0.1 0.4 0.7\n1 0.5 0.5 0.25 0.5\n")
    report = convert_boxes(root, tmp_path / "coco", "coco").describe()
    assert "1 outline written as polygons, for detectors with masks" in report
    assert "1 object with a box only, excluded from mask training" in report
    outlined, boxed = document_of(tmp_path / "coco")["annotations"]  # of an image of 40x20 pixels
    assert outlined["segmentation"] == [pytest.approx([8, 6, 24, 2, 16, 14])]
    assert outlined["bbox"] == pytest.approx([8, 2, 16, 12])
    assert outlined["area"] == pytest.approx(80)
    assert boxed["bbox"] == pytest.approx([15, 5, 10, 10])
    assert boxed["area"] == pytest.approx(100)
    assert boxed["segmentation"] == []
    dataset = open_detection(tmp_path / "coco", "train")
    dataset.masks = True
    target = dataset[0]["target"]
    assert target["outlined"].tolist() == [True, False]
    assert abs(int(target["masks"][0].sum()) - 80) < 15  # pixels of the border


def test_outlines_of_roboflow_and_closed_polygons(tmp_path: Path) -> None:
    root = tmp_path / "robo"
    for split in ("train", "valid"):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        Image.new("RGB", (10, 10)).save(root / split / "images" / "a.jpg")
        (root / split / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 0.1 0.1\n")
    (root / "data.yaml").write_text("names: [ant]\n")
    convert_boxes(root, tmp_path / "coco", "coco")
    (one,) = document_of(tmp_path / "coco")["annotations"]
    assert (one["area"], len(one["segmentation"][0])) == (pytest.approx(16), 10)
    assert open_detection(tmp_path / "coco", "val").file.has_outlines


def test_outlines_come_back_to_yolo_on_request(tmp_path: Path) -> None:
    line = "1 0.2 0.3 0.6 0.1 0.4 0.7"
    convert_boxes(yolo(tmp_path / "yolo", f"{line}\n0 0.5 0.5 0.25 0.5\n"), tmp_path / "coco", "coco")
    report = data_convert(str(tmp_path / "coco"), str(tmp_path / "back"), to="yolo", outlines=True)
    assert "1 outline written; 1 object without exactly one polygon written as box" in report.describe()
    assert (tmp_path / "back" / "labels" / "train" / "ä b.txt").read_text() == f"{line}\n0 0.5 0.5 0.25 0.5\n"
    report = data_convert(str(tmp_path / "coco"), str(tmp_path / "plain"), to="yolo")
    assert "masks were not converted; --outlines writes polygons" in report.describe()
    assert (tmp_path / "plain" / "labels" / "train" / "ä b.txt").read_text().startswith("1 0.4 0.4 0.4 0.6\n")
    report = data_convert(str(tmp_path / "yolo"), str(tmp_path / "voc"), to="voc")
    assert "1 outline reduced to the box around: VOC has boxes only" in report.describe()
    with pytest.raises(UsageError, match="--outlines is for the conversion of COCO with --to yolo"):
        data_convert(str(tmp_path / "yolo"), str(tmp_path / "no"), outlines=True)


def test_keypoints_of_yolo_are_no_outlines(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo", "1 0.5 0.5 0.25 0.5 0.4 0.4 0.6 0.6\n")
    with (root / "data.yaml").open("a") as stream:
        stream.write("kpt_shape: [2, 2]\n")
    report = convert_boxes(root, tmp_path / "coco", "coco")
    assert "keypoints were not converted" in report.describe()
    (one,) = document_of(tmp_path / "coco")["annotations"]
    assert (one["bbox"], one["segmentation"]) == ([15, 5, 10, 10], [])


@pytest.mark.parametrize("layout", ["voc", "yolo"])
def test_images_of_one_stem_keep_their_own_boxes(layout: str, tmp_path: Path) -> None:
    names = ["a.png", "a.bmp", "b.PNG"]
    (tmp_path / "coco" / "train").mkdir(parents=True)
    for name in names:
        Image.new("RGB", (40, 20)).save(tmp_path / "coco" / "train" / name)
    document = {
        "images": [{"id": n, "file_name": name, "width": 40, "height": 20} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 1, 8, 8]} for n in range(3)],
        "categories": [{"id": 1, "name": "ant"}],
    }
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(document))
    convert_boxes(tmp_path / "coco", tmp_path / "there", layout)  # type: ignore[arg-type]
    for path in [*(tmp_path / "there").rglob("*.txt"), *(tmp_path / "there").rglob("*.xml")]:
        if path.name not in ("classes.txt", "train.txt"):
            path.rename(path.with_suffix(path.suffix.upper()))
    assert can_convert(tmp_path / "there")
    convert_boxes(tmp_path / "there", tmp_path / "back", "coco")
    found = boxes(tmp_path / "back")
    assert sorted(round(one[0][1][0]) for one in found.values()) == [0, 1, 2]
    assert len(found) == 3
