from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.cli import main
from fishnet.data.checks import CheckReport
from fishnet.data.levels import LayoutWriter, LevelClasses
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.multitask.check import check_data
from tests.data.makers import noise, put
from tests.data.multitask.makers import CLASSES, SIZE, labels_of, multitask

KNOWN = ("irp", "i", "r", "p", "ir", "rp", "ip", "irp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return multitask(tmp_path / "data", KNOWN)


def found(report: CheckReport) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem.path)
    return kinds


def test_a_clean_folder_is_counted_by_level_and_combination(folder: Path) -> None:
    report = check_data(folder)
    assert report.problems == []
    text = report.describe()
    assert "train: 8 images, 5 with image labels, 5 with region labels, 5 with pixel labels" in text
    assert "2 with image+region+pixel only" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if len(line.split()) == 3}
    assert rows["day"] == ["3", "3"]
    assert rows["night"] == ["2", "2"]
    labels = [np.asarray(Image.open(path)) for path in sorted((folder / "train" / "labels").iterdir())]
    assert int(rows["sky"][0].replace(",", "")) == sum(int((one == 1).sum()) for one in labels)
    document = json.loads((folder / "annotations" / "instances_val.json").read_text())
    for category in document["categories"]:
        expected = sum(one["category_id"] == category["id"] for one in document["annotations"])
        assert rows[category["name"]][1] == str(expected)


def test_real_data_is_clean(mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_data(mini("pets3"), picture=str(tmp_path / "sheet.png"))
    assert report.problems == []
    assert "no problems in" in report.describe()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert "sheet.png" in capsys.readouterr().out


def test_the_picture_shows_splits_with_labels_of_different_levels(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path / "data", CLASSES)
    for number, (split, known) in enumerate([("train", "irp"), ("train", "i"), ("val", "rp"), ("val", "p")]):
        writer.add(split, f"{number}.jpg", noise(number, *SIZE), SIZE, labels_of(number, known))
    writer.finish()
    check_data(tmp_path / "data", picture=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_damage_is_found(folder: Path) -> None:
    images, labels = folder / "train" / "images", folder / "train" / "labels"
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    entry = document["images"][4]
    assert entry["file_name"] == "004.jpg"
    box = next(one for one in document["annotations"] if one["image_id"] == entry["id"])
    entry["annotated_category_ids"] = [number for number in (1, 2, 3) if number != box["category_id"]]
    path.write_text(json.dumps(document))
    (images / "002.jpg").unlink()  # region only: listed, but gone
    put(images / "extra.jpg", noise(77))  # in no list
    shutil.copy(folder / "val" / "images" / "101.jpg", images / "001.jpg")
    Image.fromarray(np.full((36, 40), 7, np.uint8)).save(labels / "003.png")  # no such class
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(labels / "005.png")
    Image.fromarray(np.zeros((36, 40), np.uint8)).save(labels / "lost.png")
    (images / "006.jpg").write_bytes((images / "006.jpg").read_bytes()[:300])
    report = check_data(folder)
    kinds = found(report)
    assert kinds == {
        "no label": ["train/images/extra.jpg"],
        "missing image file": ["train/images/002.jpg"],
        "missing image": ["train/labels/lost.png"],
        "not annotated": [f"instances_train.json, annotation {box['id']}"],
        "unusable": ["train/images/005.jpg", "train/images/003.jpg"],
        "truncated": ["train/images/006.jpg"],
        "duplicate across splits": ["train/images/001.jpg"],
    }
    assert report.exit_code == 1


def test_a_level_that_no_image_has_is_noted(tmp_path: Path) -> None:
    report = check_data(multitask(tmp_path / "data", ("ip", "p")))
    assert found(report) == {"missing level": ["train", "val"], "empty class": ["train"]}
    assert report.exit_code == 0


def test_splits_with_other_classes_are_an_error(folder: Path, tmp_path: Path) -> None:
    other = multitask(
        tmp_path / "other", ("irp", "irp"), ("val",), LevelClasses(["day", "dusk"], CLASSES.region, ["a", "b"])
    )
    shutil.copy(other / "annotations" / "instances_val.json", folder / "annotations" / "instances_val.json")
    shutil.rmtree(folder / "val")
    shutil.copytree(other / "val", folder / "val")
    report = check_data(folder)
    (problem,) = [problem for problem in report.problems if problem.kind == "other classes"]
    assert problem.detail == "image level: missing night; additional dusk"


def test_several_folders_are_checked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder gives the objects, the other the label maps; an image of one's train is in the other's val."""
    objects = multitask(tmp_path / "objects", ("r", "r", "r"))
    maps = multitask(tmp_path / "maps", ("p", "p"))
    copied, leaked = (sorted((root / "images").iterdir())[0] for root in (objects / "train", maps / "val"))
    shutil.copy(copied, leaked.with_suffix(copied.suffix))
    with Image.open(copied) as image:
        Image.fromarray(np.zeros(image.size[::-1], np.uint8)).save(maps / "val" / "labels" / f"{leaked.stem}.png")
    arguments = ["data", "check", "multitask", f"region={objects}", f"pixel={maps}"]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "train: 5 images, 0 with image labels, 3 with region labels, 2 with pixel labels" in shown
    assert "error: the same image in two splits: 1" in shown
    assert f"same as {leaked}" in shown
    assert main(["data", "check", "multitask", str(objects), str(maps)]) == 2
    assert "takes one folder, or several as LEVEL=DIR" in capsys.readouterr().err


def test_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "readme.txt").write_text("")
    with pytest.raises(FishnetError, match="contains no multitask data; expected DIR/annotations"):
        check_data(tmp_path / "some")
    with pytest.raises(UsageError, match=r"must end in .png or .jpg"):
        check_data(tmp_path / "some", picture="sheet.txt")
    report = check_data(multitask(tmp_path / "half", ("irp", "ir", "p"), ("train",)))
    assert found(report)["missing split"] == ["val"]
