"""The check finds what is wrong with label maps, and guesses what they are."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.data.checks import CheckReport
from fishnet.data.segmentation.checks import check_segmentation
from fishnet.errors import FishnetError
from tests.data.makers import encode, noise, put
from tests.data.segmentation.makers import CLASSES, data_folder, label_map, paletted, png, relabel
from tests.data.segmentation.test_dataset import cityscapes_folder, voc_folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data", {"train": 4, "val": 2})


def found(report: CheckReport) -> dict[str, list[str]]:
    """Return kind -> paths of what is found."""
    kinds: dict[str, list[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem.path)
    assert report.exit_code == int(any(problem.severity == "error" for problem in report.problems))
    return kinds


def detail(report: CheckReport, kind: str) -> str:
    return next(problem.detail for problem in report.problems if problem.kind == kind)


def test_real_data_is_clean(mini: Callable[[str], Path]) -> None:
    for name in ("camvid", "pets3"):
        assert found(check_segmentation(mini(name))) == {}
    coco = check_segmentation(mini("coco").with_name("coco_semantic"))
    assert set(found(coco)) <= {"empty class"}
    assert coco.exit_code == 0


def test_the_histogram_against_a_count_of_the_pixels(mini: Callable[[str], Path]) -> None:
    root = mini("camvid")
    report = check_segmentation(root)
    names = json.loads((root / "classes.json").read_text())["classes"]
    maps = {split: [np.array(Image.open(p)) for p in (root / split / "labels").iterdir()] for split in ("train", "val")}
    for split, labels in maps.items():
        counted = {name: sum(int((one == k).sum()) for one in labels) for k, name in enumerate(names)}
        assert report.summary["pixels"][split] == counted
    total = sum(report.summary["pixels"]["train"].values())
    line = next(line for line in report.describe().splitlines() if line.startswith("Bicyclist"))
    assert line.split()[1] == f"{100 * report.summary['pixels']['train']['Bicyclist'] / total:.2f}"
    assert line.split()[3] == str(sum(bool((one == 10).any()) for one in maps["train"]))
    json.dumps(report.to_dict())


def test_voc_and_cityscapes_as_they_come(tmp_path: Path) -> None:
    assert found(check_segmentation(voc_folder(tmp_path))) == {}
    assert found(check_segmentation(cityscapes_folder(tmp_path / "city"))) == {}


def test_damage_put_into_real_data_is_found(mini_copy: Callable[[str], Path]) -> None:
    root = mini_copy("camvid")
    names = sorted(path.stem for path in (root / "train" / "images").iterdir())
    image = [f"train/images/{name}.jpg" for name in names]
    label = [f"train/labels/{name}.png" for name in names]
    (root / label[0]).unlink()
    (root / image[1]).unlink()
    (root / label[2]).write_bytes((root / label[2]).read_bytes()[:300])
    (root / image[3]).write_bytes((root / image[3]).read_bytes()[:900])
    with Image.open(root / label[4]) as one:
        one.resize((100, 70), Image.Resampling.NEAREST).save(root / label[4])
    shutil.copy(root / image[5], root / "val" / "images" / "copy.jpg")
    shutil.copy(root / label[5], root / "val" / "labels" / "copy.png")
    Image.new("L", (240, 180), 11).save(root / label[6])
    Image.new("L", (240, 180), 77).save(root / label[7])
    report = check_segmentation(root)
    assert found(report) == {
        "missing label": [image[0]],
        "missing image": [label[1]],
        "unreadable label": [label[2]],
        "truncated": [image[3]],
        "size mismatch": [label[4]],
        "all ignored": [label[6]],
        "unknown values": ["train", label[7]],
        "duplicate across splits": ["val/images/copy.jpg"],
    }
    assert detail(report, "size mismatch") == f"it has 100x70 pixels, but the image {image[4]} has 240x180"
    assert detail(report, "unknown values").startswith("1 of 58 label maps: ")
    assert report.problems[-1].severity == "error"
    assert "77 (43,200 pixels)" in report.describe()


MASKS = {"classes": ["background", "cat"], "ignore_index": 255}


def as_mask(labels: np.ndarray) -> bytes:
    return png((labels == 1).astype(np.uint8) * 255)


def in_colors(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([labels * 0, np.minimum(labels, 3) * 60, labels * 0 + 9], 2))


def transparent(labels: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(labels)] * 2)


GUESSES = {
    "0/255, 255 ignored": (MASKS, as_mask, "one class", "masks of 0 and 255"),
    "0/255": ({"classes": ["a", "b"], "ignore_index": None}, as_mask, "unknown values", "masks of 0 and 255"),
    "255": ({**CLASSES, "ignore_index": None}, png, "unknown values", "255 usually marks pixels to ignore"),
    "from 1": (
        CLASSES, lambda x: png(np.where(x == 255, 255, x + 1).astype(np.uint8)), "unknown values", "counted from 1"
    ),
    "gray levels": (
        CLASSES, lambda x: png((np.minimum(x, 2) * 127).astype(np.uint8)), "unknown values", "gray levels for viewing"
    ),
    "palette": (
        CLASSES,
        lambda x: paletted(np.where(x == 2, 9, x).astype(np.uint8)),
        "unknown values",
        "whose indices (0, 1, 9, 255) are read, not its colors",
    ),
    "photo": (CLASSES, lambda x: noise(int(x[9, 9])), "label format", "different colors are those of photos"),
    "gray photo": (
        CLASSES, lambda x: noise(int(x[9, 9])).convert("L"), "unknown values", "different values are those of a photo"
    ),
    "colors": (CLASSES, in_colors, "label format", 'colored with 4 colors; add "palette" to classes.json'),
    "ids": (
        CLASSES, lambda x: png((np.minimum(x, 2).astype(np.uint16) + 24) * 1000 + 3), "unknown values", "ids of objects"
    ),
    "transparent": (CLASSES, transparent, "label format", "transparent pixels"),
    "cityscapes": (
        {"classes": [f"c{n}" for n in range(19)]},
        lambda x: png(np.where(x == 255, 0, x + 24).astype(np.uint8)),
        "unknown values",
        "label ids of Cityscapes",
    ),
    "palette lacks colors": (
        {"classes": ["a", "b", "c"], "palette": [[0, 0, 9], [0, 60, 9], [9, 9, 8]]},
        in_colors,
        "unknown values",
        "palette of classes.json lacks colors",
    ),
}  # fmt: skip


def test_files_without_readable_values_get_no_guess(clean: Path) -> None:
    (clean / "classes.json").write_text(json.dumps({"classes": [f"c{n}" for n in range(19)]}))
    relabel(clean, transparent)
    assert "transparent pixels" in detail(check_segmentation(clean), "label format")


@pytest.mark.parametrize("name", GUESSES)
def test_guesses(clean: Path, name: str) -> None:
    document, change, kind, guess = GUESSES[name]
    (clean / "classes.json").write_text(json.dumps(document))
    relabel(clean, change)
    report = check_segmentation(clean)
    assert report.exit_code == 1
    assert found(report)[kind][0] == ("train" if name != "transparent" else "train/labels/000.png")
    assert guess in detail(report, kind)
    assert all("\n" not in problem.detail for problem in report.problems)
    assert guess in report.describe()  # among the first five


def test_what_the_guess_about_masks_advises_works(clean: Path) -> None:
    (clean / "classes.json").write_text(json.dumps(MASKS))
    relabel(clean, lambda labels: png((labels == 1).astype(np.uint8) * 255))
    advised = {**MASKS, "values": {"0": "background", "255": "cat"}, "ignore_index": None}
    assert json.dumps(advised["values"]) in detail(check_segmentation(clean), "one class")
    (clean / "classes.json").write_text(json.dumps(advised))
    assert found(check_segmentation(clean)) == {}


def test_splits_that_teach_nothing(clean: Path) -> None:
    relabel(clean, lambda labels: png(np.full_like(labels, 1)), ("train",))
    report = check_segmentation(clean)
    assert found(report) == {"one class": ["train"]}
    assert detail(report, "one class") == "road is the only class of 4 label maps"
    relabel(clean, lambda labels: png(np.full_like(labels, 255)), ("train",))
    report = check_segmentation(clean)
    assert found(report)["no labels"] == ["train"]
    assert len(found(report)["all ignored"]) == 4
    relabel(clean, lambda labels: png(label_map(0, classes=2)), ("train",))
    report = check_segmentation(clean)
    assert found(report) == {"empty class": ["train"]}
    assert detail(report, "empty class") == "car"
    assert report.exit_code == 0


def test_lists_and_folders(clean: Path, tmp_path: Path) -> None:
    shutil.rmtree(clean / "val")
    assert found(check_segmentation(clean)) == {"missing split": ["val"]}
    put(clean / "train" / "images" / "000.png", encode(noise(7), "PNG"))
    put(clean / "train" / "labels" / "009.jpg", noise(8))
    report = check_segmentation(clean)
    assert found(report) == {
        "missing split": ["val"],
        "same stem": ["train/images/000.png"],
        "lossy label": ["train/labels/009.jpg"],
    }
    (clean / "classes.json").unlink()
    report = check_segmentation(clean)
    assert found(report) == {"layout": ["train"], "missing split": ["val"]}
    assert "classes.json is missing; write" in detail(report, "layout")
    unsplit = data_folder(tmp_path / "unsplit", {"": 3})
    assert "`fishnet data split" in detail(check_segmentation(unsplit), "missing split")
    with pytest.raises(FishnetError, match="has no label maps in a known layout"):
        check_segmentation(put(tmp_path / "photos" / "a.jpg", noise(1)).parent)


def test_images_without_a_label_map_are_usual_in_a_folder_of_several_levels(mini_copy: Callable[[str], Path]) -> None:
    root = mini_copy("pets3")
    first = next(iter(sorted((root / "train" / "labels").iterdir())))
    first.unlink()
    report = check_segmentation(root)
    assert found(report) == {"missing label": [f"train/images/{first.stem}.jpg"]}
    assert report.exit_code == 0


def test_a_photo_of_a_bomb_and_a_stream_of_bytes(clean: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (20000, 20000)).save(stream, "PNG")
    (clean / "train" / "labels" / "001.png").write_bytes(stream.getvalue())
    report = check_segmentation(clean)
    assert found(report) == {"unreadable label": ["train/labels/001.png"]}
    assert "decompression bomb" in detail(report, "unreadable label")
