"""Images and masks as they come from other tools: other folders, suffixes, no classes.json."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishnet.commands.data_convert import data_convert
from fishnet.commands.data_split import data_split
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import encode, noise, put
from tests.data.segmentation.makers import CLASSES, data_folder, label_map, png


def pairs(root: Path, images: str, labels: str, count: int = 5, start: int = 0) -> None:
    """Write images and label maps to paths with a * for the stem."""
    for number in range(start, start + count):
        put(root / images.replace("*", f"{number:03d}"), noise(number))
        put(root / labels.replace("*", f"{number:03d}"), png(label_map(number)))


@pytest.mark.parametrize(
    ("places", "splits"),
    [
        ([("images/*.jpg", "masks/*.png")], 1),
        ([("images/*.JPG", "masks/*_mask.PNG")], 1),
        ([("imgs/*.jpg", "annotations/*-mask.png")], 1),
        ([(f"{split}/images/*.jpg", f"{split}/masks/*_gt.png") for split in ("train", "valid")], 2),
        ([(f"images/{split}/*.jpg", f"annotations/{split}/*.png") for split in ("training", "validation")], 2),
        ([(f"{split}/*.jpg", f"{split}_labels/*_L.png") for split in ("train", "val")], 2),
    ],
)
def test_the_command_that_is_named_makes_a_usable_folder(places, splits, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("photos")
    for number, (images, labels) in enumerate(places):
        pairs(root, images, labels, start=10 * number)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    for call in (lambda: open_segmentation(root, "train"), lambda: data_split(str(root))):
        with pytest.raises((FishnetError, UsageError), match=r"has label maps in .*`fishnet data convert") as caught:
            call()
    assert "needs the classes" not in str(caught.value)
    command = re.search(r"`fishnet data convert (.*?)`", str(caught.value))
    assert command is not None
    source, dest, *rest = shlex.split(command[1])
    assert bool(rest) == (splits == 1)
    data_convert(source, dest, **({"val": float(rest[1])} if rest else {}))
    train, val = (open_segmentation(dest, split) for split in ("train", "val"))
    assert (len(train), len(val)) == ((4, 1) if splits == 1 else (5, 5))
    assert {train.path(0).stem} == {train.label_path(0).stem}


def test_label_files_with_a_suffix_are_read_in_the_own_layout(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"": 5})
    for path in sorted((root / "labels").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_L"))
    put(root / "images" / "000_L.jpg", noise(99))  # its label map has no suffix
    data_split(str(root))
    train, val = (open_segmentation(root, split) for split in ("train", "val"))
    names = [data.listing.pairs[n] for data in (train, val) for n in range(len(data))]
    assert len(names) == 5
    assert all(Path(one.label).stem in (Path(one.image).stem, f"{Path(one.image).stem}_L") for one in names)


def rgb(seed: int) -> bytes:
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    return encode(Image.fromarray(colors[label_map(seed, ignored=False)]), "PNG")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            lambda n: png(label_map(n, classes=2, ignored=False) * np.uint8(255)),
            r'values 0, 255; write it .*: \{"values": \{"0": "background", "255": "object"\}, "ignore_index',
        ),
        (
            lambda n: png(label_map(n)),
            r'values 0, 1, 2, 255; .*\{"classes": \["background", "class 1", "class 2"\], "ignore_index": 255\}',
        ),
        (
            lambda n: png(label_map(n, classes=2, ignored=False) * np.uint8(38)),
            r'values 0, 38; .*\{"values": \{"0": "background", "38": "class 38"\}, "ignore_index": 255\}',
        ),
        (rgb, r'have 3 colors; .*"palette": \[\[(0|128), '),
    ],
)
@pytest.mark.parametrize("folder", ["masks", "labels"])
def test_without_classes_the_values_suggest_a_file_that_works(content, match, folder, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(4):
        put(root / "images" / f"{number}.jpg", noise(number))
        put(root / folder / f"{number}_mask.png", content(number))
    with pytest.raises((FishnetError, UsageError), match=match) as caught:
        data_split(str(root))
    text = str(caught.value)
    assert f"{root / 'classes.json'} is missing" in text
    if folder == "masks":
        assert "data convert" in text, "all needs are in one message"
    (root / "classes.json").write_text(text[text.index("{") :])
    if folder == "masks":
        data_convert(str(root), str(tmp_path / "out"), val=0.25)
    else:
        data_split(str(root), val=0.25)
    data = open_segmentation(tmp_path / "out" if folder == "masks" else root, "train")
    assert set(np.unique(data.label_map(0)).tolist()) <= {0, 1, 2, 255}
    assert len(data) == 3


@pytest.mark.parametrize("wrong", ["train/images", "train/labels", "train", ".."])
def test_a_folder_of_another_level_is_corrected(wrong: str, tmp_path: Path) -> None:
    root = data_folder(tmp_path / "above" / "data", {"train": 2, "val": 2})
    asked = tmp_path / "above" if wrong == ".." else root / wrong
    with pytest.raises(FishnetError, match=rf"[dD]id you mean --data {re.escape(str(root))}\?"):
        open_segmentation(asked, "train")
