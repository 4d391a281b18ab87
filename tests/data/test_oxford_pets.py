"""The original layout is made from a data set that was made from the original."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from fishnet.cli import main
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.oxford_pets import ARCHIVES, convert_pets, fetch_pets
from fishnet.errors import FishnetError, UsageError

NUMBERS = {"Abyssinian": 1, "american_bulldog": 2, "Bengal": 6}
"""Breeds are numbered as in the original, which has others between them."""


def original(pets: Path, out: Path) -> Path:
    """Write a multitask folder of pets in the layout of the original."""
    trimaps = out / "annotations" / "trimaps"
    trimaps.mkdir(parents=True)
    (out / "images").mkdir()
    lists = {"train": "trainval", "val": "test"}
    for split, name in lists.items():
        lines = []
        document = json.loads((pets / "annotations" / f"instances_{split}.json").read_text())
        for entry in document["images"]:
            stem = Path(entry["file_name"]).stem
            breed = document["labels"][entry["label"]]
            shutil.copy(pets / split / "images" / entry["file_name"], out / "images")
            with Image.open(pets / split / "labels" / f"{stem}.png") as opened:
                labels = np.asarray(opened)
            trimap = np.select([labels == 1, labels == 0], [1, 2], 3).astype(np.uint8)
            Image.fromarray(trimap).save(trimaps / f"{stem}.png")
            lines.append(f"{stem} {NUMBERS[breed]} {1 + (breed == 'american_bulldog')} 1")
        (out / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (out / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    (trimaps / "._Abyssinian_1.png").write_bytes(b"left by a Mac, as in the original")
    return out


@pytest.fixture(scope="module")
def source(mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original(mini("pets3"), tmp_path_factory.mktemp("pets") / "oxford")


def test_the_layout_is_that_of_torchvision(source: Path, tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet").symlink_to(source)
    assert len(OxfordIIITPet(tmp_path, "trainval")) == 72
    assert convert_pets(tmp_path, tmp_path / "out").breeds == 3


def test_conversion_gives_the_known_labels(mini, source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["data", "convert", "oxford-pets", str(source), str(out), "--val", "0"]) == 0
    printed = capsys.readouterr().out
    assert "train 72, val 36 images of 3 breeds" in printed
    assert "the complete data set has 37" in printed
    for split in ("train", "val"):
        ours, theirs = open_multitask(out, split), open_multitask(mini("pets3"), split)
        assert ours.classes == theirs.classes
        known = {path.name: index for index, path in enumerate(theirs.paths)}
        assert sorted(path.name for path in ours.paths) == sorted(known)
        for index, path in enumerate(ours.paths):
            image, labels = ours.load(index)
            expected_image, expected = theirs.load(known[path.name])
            assert image.tobytes() == expected_image.tobytes()
            assert labels.label == expected.label == labels.objects.classes.item() == expected.objects.classes.item()
            assert np.array_equal(labels.objects.boxes, expected.objects.boxes)
            assert labels.objects.masks[0]["counts"] == expected.objects.masks[0]["counts"]
            assert np.array_equal(labels.label_map, expected.label_map)


def test_the_layout_is_recognized(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "oxford-iiit-pet").symlink_to(source)
    out = tmp_path / "out"
    assert main(["data", "convert", str(tmp_path / "torchvision"), str(out), "--val", "0.25", "--copy"]) == 0
    printed = capsys.readouterr().out
    assert (
        f"{out}: train 54, val 18, test 36 images of 3 breeds, with classes, boxes, outlines and label maps" in printed
    )
    assert f"next: fishnet train multitask --data {out}" in printed
    assert main(["data", "convert", str(source), str(tmp_path / "other"), "--to", "yolo"]) == 2
    assert "--to is not an option of the conversion of Oxford-IIIT Pet; its options: --copy, --seed, --val" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()


def test_val_is_a_share_of_every_breed_and_test_stays_apart(source: Path, tmp_path: Path) -> None:
    report = convert_pets(source, tmp_path / "out", val=0.25, seed=3)
    assert report.images == {"train": 54, "val": 18, "test": 36}
    val = open_multitask(tmp_path / "out", "val")
    assert Counter(val.labels.tolist()) == {0: 6, 1: 6, 2: 6}
    everything = [path.name for path in (tmp_path / "out").glob("*/images/*")]
    assert len(everything) == len(set(everything)) == 108
    assert convert_pets(source, tmp_path / "again", val=0.25, seed=3).images == report.images
    again = open_multitask(tmp_path / "again", "val")
    assert [path.name for path in again.paths] == [path.name for path in val.paths]


def test_damaged_images_are_left_out_and_named(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    names = [line.split()[0] for line in (copy / "annotations" / "trainval.txt").read_text().splitlines()]
    trimaps = copy / "annotations" / "trimaps"
    (copy / "images" / f"{names[0]}.jpg").unlink()
    (trimaps / f"{names[1]}.png").write_bytes(b"nothing")
    Image.new("L", (9, 9), 2).save(trimaps / f"{names[2]}.png")
    with Image.open(trimaps / f"{names[3]}.png") as trimap:
        Image.new("L", trimap.size, 9).save(trimaps / f"{names[3]}.png")
        Image.new("L", trimap.size, 2).save(tmp_path / "background.png")
        size = trimap.size
    report = convert_pets(copy, tmp_path / "out", val=0)
    assert report.images["train"] == 68
    (note,) = [note for note in report.notes if "left out" in note]
    assert note.startswith("left out 4 images: ")
    for text in ("there is no such file", "cannot be read", "has 9x9 pixels", "values other than 1 (pet)"):
        assert text in note
    # a trimap without a pet has no box, rather than an empty one
    shutil.copy(tmp_path / "background.png", trimaps / f"{names[3]}.png")
    convert_pets(copy, tmp_path / "other", val=0)
    split = open_multitask(tmp_path / "other", "train")
    place = [path.stem for path in split.paths].index(names[3])
    assert split.known[place].tolist() == [True, False, True]
    assert split.load(place)[0].size == size


def test_bad_usage_is_one_clear_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="full is not empty"):
        convert_pets(source, tmp_path / "full")
    with pytest.raises(FishnetError, match="is not the Oxford-IIIT Pet data set; expected images"):
        convert_pets(tmp_path / "full", tmp_path / "out")
    with pytest.raises(UsageError, match="--val must be at least 0 and below 1"):
        convert_pets(source, tmp_path / "out", val=1)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    (copy / "annotations" / "trainval.txt").write_text("Abyssinian_1 one\n")
    with pytest.raises(FishnetError, match="'Abyssinian_1 one' is not a name with the number of a breed"):
        convert_pets(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def packed(source: Path, out: Path) -> tuple[tuple[str, str], ...]:
    """Pack both folders of the original; return the address and checksum of each archive."""
    found = []
    for name in ("images", "annotations"):
        with tarfile.open(out / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(source / name, name)
        digest = hashlib.md5((out / f"{name}.tar.gz").read_bytes()).hexdigest()
        found.append((f"{out.as_uri()}/{name}.tar.gz", digest))
    return tuple(found)


def test_archives_are_downloaded_and_unpacked(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "served").mkdir()
    archives = packed(source, tmp_path / "served")
    out = tmp_path / "out"
    assert "37 breeds" in fetch_pets(out, archives)
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "images"]
    assert convert_pets(out, tmp_path / "converted", val=0).images == {"train": 72, "val": 36}
    assert fetch_pets(out, archives).endswith("has the data set already")
    # an archive that was placed by hand is not downloaded
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    for name in ("images", "annotations"):
        shutil.copy(tmp_path / "served" / f"{name}.tar.gz", by_hand)
    fetch_pets(by_hand, tuple(("http://127.0.0.1:9/" + url.rpartition("/")[2], md5) for url, md5 in archives))
    assert len(list((by_hand / "images").glob("*.jpg"))) == 108


def test_the_command_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [address.rpartition("/")[2] for address, _ in ARCHIVES] == ["images.tar.gz", "annotations.tar.gz"]
    out = tmp_path / "out"
    assert main(["data", "get", "oxford-pets", str(out), "--mirror", "http://127.0.0.1:9/pets/"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fishnet: error: cannot download http://127.0.0.1:9/pets/images.tar.gz")
    assert f"place it in {out} as images.tar.gz" in line
    assert main(["data", "get", "pets", str(out)]) == 2
    assert "unknown data set 'pets'. Did you mean 'oxford-pets'?" in capsys.readouterr().err
