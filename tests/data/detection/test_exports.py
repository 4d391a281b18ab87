"""COCO annotations as CVAT, Label Studio and others export them, from the first error to a data set that is read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from fishnet.commands.data_convert import data_convert
from fishnet.commands.data_split import data_split
from fishnet.data.detection.dataset import open_detection
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import noise, put


def document(names: list[str], sizes: bool = True) -> bytes:
    size = {"width": 40, "height": 36} if sizes else {}
    outline = [[5, 5, 25, 5, 25, 25, 5, 25]]
    one = {"category_id": 0, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "segmentation": outline}
    return json.dumps({
        "images": [{"id": n, "file_name": name, **size} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, **one} for n in range(len(names))],
        "categories": [{"id": 0, "name": "cat"}],
    }).encode()  # fmt: skip


def pictures(folder: Path, count: int = 5, start: int = 0) -> list[str]:
    names = [f"{start + n}.jpg" for n in range(count)]
    for n, name in enumerate(names):
        put(folder / name, noise(start + n))
    return names


def cvat(root: Path) -> None:
    put(root / "annotations" / "instances_default.json", document(pictures(root / "images" / "default")))


def label_studio(root: Path) -> None:
    names = pictures(root / "images")
    prefixes = ["images/", "../../label-studio/data/media/upload/1/", "images\\", "/data/upload/", ""]
    put(root / "result.json", document([a + b for a, b in zip(prefixes, names, strict=True)], sizes=False))


def plain(root: Path) -> None:
    put(root / "photos.json", document(pictures(root / "photos")))


def splits_in_images(root: Path) -> None:
    for start, split in ((0, "train"), (50, "val")):
        pictures(root / "images" / split, start=0)  # equal names
        put(root / "images" / split / "0.jpg", noise(start + 9))
        put(root / "annotations" / f"{split}.json", document([f"{n}.jpg" for n in range(5)]))


def cvat_subsets(root: Path) -> None:
    for start, split in ((0, "Train"), (50, "Validation")):
        names = pictures(root / "images" / split, start=start)
        put(root / "annotations" / f"instances_{split}.json", document(names))


LAYOUTS = [cvat, label_studio, plain, splits_in_images, cvat_subsets]


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_command_that_training_names_makes_a_usable_folder(write, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("my data")
    write(root)
    with pytest.raises(FishnetError, match="has COCO annotations in another place") as caught:
        open_detection(root, "train")
    with pytest.raises((FishnetError, UsageError), match="fishnet data convert"):
        data_split(str(root))
    command = re.search(r"`fishnet data convert (.*?)`", str(caught.value))
    assert command is not None
    source, dest, *rest = shlex.split(command[1])
    assert (source, dest) == ("my data", "my data_coco")
    data_convert(source, dest, **({"val": float(rest[1])} if rest else {}))
    train, val = (open_detection(dest, split) for split in ("train", "val"))
    assert (len(train), len(val)) == ((5, 5) if "split" in write.__name__ or "subsets" in write.__name__ else (4, 1))
    assert train.file.has_outlines
    assert train[0]["image"].shape == (3, 36, 40)
    if write is splits_in_images:
        assert train.path(0).samefile(root / "images" / "train" / "0.jpg")
        assert val.path(0).samefile(root / "images" / "val" / "0.jpg")


def test_images_that_an_export_lacks_are_counted(tmp_path: Path) -> None:
    label_studio(tmp_path / "ls")
    for n in (1, 2):
        (tmp_path / "ls" / "images" / f"{n}.jpg").unlink()
    with pytest.raises(FishnetError, match=r"names 2 images of 5 that .* does not contain.*upload/1/1\.jpg, images"):
        data_convert(str(tmp_path / "ls"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_own_layout_is_not_converted_to_itself(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images" / "train")
    put(tmp_path / "annotations" / "instances_train.json", document(names))
    with pytest.raises(UsageError, match=r"already has the layout coco; `fishnet train detection --data .*` reads it"):
        data_convert(str(tmp_path), str(tmp_path / "out"))
