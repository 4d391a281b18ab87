"""COCO folders whose images are not in DIR/<split>."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fishnet.commands.data_check import data_check
from fishnet.commands.data_split import data_split
from fishnet.data.detection.dataset import open_detection
from fishnet.errors import FishnetError
from tests.data.makers import noise, put


def coco(root: Path, place: str, split: str = "train", count: int = 4, written: int | None = None) -> Path:
    """Write annotations/instances_<split>.json of `count` images, of which `written` are in root/place."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 36} for n in range(count)]
    for entry in images[count - (count if written is None else written) :]:
        put(root / place / str(entry["file_name"]), noise(int(entry["id"]) + (100 if split == "val" else 0)))
    box = {"category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    document = {
        "images": images,
        "annotations": [{"id": n, "image_id": n, **box} for n in range(count)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    put(root / "annotations" / f"instances_{split}.json", json.dumps(document).encode())
    return root


@pytest.mark.parametrize("place", ["train", "train/images", "images/train", "images", "."])
def test_images_are_found_in_the_usual_folders(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path, place)
    data = open_detection(root, "train")
    assert data[3]["image"].shape == (3, 36, 40)
    assert data.notes == ([f"images are read from {root / place}"] if place.startswith("images") else [])
    data_split(str(root), val=0.5)
    assert len(open_detection(root, "val")) == 2
    assert data_check("detection", str(root)).exit_code == 0
    assert ("train: images are read from" in capsys.readouterr().out) == place.startswith("images")


def test_the_folder_of_the_split_comes_first_even_without_its_first_image(tmp_path: Path) -> None:
    root = coco(tmp_path, "train", written=3)
    put(root / "images" / "0.jpg", noise(0))
    with pytest.raises(FishnetError, match=r"has 1 problem: 1 x missing image file"):
        open_detection(root, "train")


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
def test_an_absent_folder_of_images_is_named_in_one_line(bad_images: str, tmp_path: Path) -> None:
    root = coco(tmp_path, "photos/a")
    with pytest.raises(FishnetError) as caught:
        open_detection(root, "train", bad_images=bad_images)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "none of the 4 images of" in text
    assert f"{root / 'images' / 'train'}/" in text
    assert f"{root / 'photos' / 'a' / '0.jpg'} exists: move its folder" in text
    assert "--fix" not in text


def test_fix_never_removes_all_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data", "photos")
    out = tmp_path / "out.json"
    with pytest.raises(FishnetError, match=r"--fix would remove all 4 images .* nothing was written"):
        data_check("detection", str(root), fix=str(out))
    assert not out.exists()
    assert any(
        p.kind == "layout" and "none of the 4 images" in p.detail for p in data_check("detection", str(root)).problems
    )
    capsys.readouterr()
    part = coco(tmp_path / "part", "train", written=1)
    data_check("detection", str(part), fix=str(out))
    shown = capsys.readouterr().out
    assert f"note: 1 of 4 images are left; check that {part / 'train'} is complete" in shown
    assert f"to use it, replace {part / 'annotations' / 'instances_train.json'} with it: mv {out}" in shown
