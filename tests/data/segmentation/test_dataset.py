"""Reading images with their label maps, in all layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes, VOCSegmentation

from fishnet.data.geometry import plain
from fishnet.data.loader import EvalBatches, make_loader
from fishnet.data.segmentation.dataset import collate, open_segmentation
from fishnet.data.segmentation.names import VOC_CLASSES
from fishnet.data.segmentation.transforms import AugmentConfig, train_pipeline
from fishnet.errors import FishnetError
from tests.data.makers import encode, noise, put
from tests.data.segmentation.makers import CLASSES, data_folder, label_map, paletted, png


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data", {"train": 5, "val": 3})


@pytest.mark.parametrize(("name", "ignored"), [("camvid", 11), ("pets3", 255), ("coco_semantic", 255)])
def test_real_label_maps_are_read_exactly(name: str, ignored: int, unpack: Callable[..., Path]) -> None:
    root = unpack("coco" if name == "coco_semantic" else name).with_name(name)
    for split in ("train", "val"):
        dataset = open_segmentation(root, split)
        names = sorted(path.stem for path in (root / split / "images").iterdir())
        assert len(dataset) == len(names)
        for index in range(0, len(names), 7):
            sample = dataset[index]
            stored = np.array(Image.open(root / split / "labels" / f"{names[index]}.png"))
            wanted = np.where(stored == ignored, 255, stored)
            with Image.open(root / split / "images" / f"{names[index]}.jpg") as image:
                assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))
            assert sample["target"]["label_map"].dtype == torch.uint8
            assert np.array_equal(sample["target"]["label_map"].numpy(), wanted)
            assert sample["size"] == stored.shape
            assert (sample["index"], sample["bad"]) == (index, "")


def voc_folder(root: Path) -> Path:
    """Write a VOC folder below VOCdevkit/VOC2012, as torchvision expects it."""
    base = root / "VOCdevkit" / "VOC2012"
    lists = {"train": ["2007_a", "2007_b"], "val": ["2007_c"], "trainval": ["2007_a", "2007_b", "2007_c"]}
    for split, names in lists.items():
        put(base / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(names).encode() + b"\n")
    for seed, name in enumerate([*lists["trainval"], "not_segmented"]):
        put(base / "JPEGImages" / f"{name}.jpg", noise(seed))
        if seed < 3:
            labels = label_map(seed, classes=21)
            put(base / "SegmentationClass" / f"{name}.png", encode(paletted(labels), "PNG"))
    return base


def test_voc_as_torchvision_reads_it(tmp_path: Path) -> None:
    base = voc_folder(tmp_path)
    for split in ("train", "val"):
        ours, theirs = open_segmentation(base, split), VOCSegmentation(str(tmp_path), image_set=split)
        assert len(ours) == len(theirs)
        for index, (image, label) in enumerate(theirs):
            assert np.array_equal(ours[index]["image"].permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))
            assert np.array_equal(ours[index]["target"]["label_map"].numpy(), np.array(label))
        assert ours.classes == list(VOC_CLASSES)
        assert not ours.notes
    with pytest.raises(FishnetError, match=r"has no split 'test'; available: train, val\."):
        open_segmentation(base, "test")
    with pytest.raises(FishnetError, match=rf"Did you mean --data {base}\?"):
        open_segmentation(tmp_path, "train")


def cityscapes_folder(root: Path) -> Path:
    """Write a Cityscapes folder whose label ids run over all values."""
    for number, (split, city) in enumerate([("train", "aachen"), ("train", "bonn"), ("val", "ulm")]):
        stem = f"{city}_000000_00001{number}"
        put(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", encode(noise(number, 35, 20), "PNG"))
        ids = np.random.default_rng(number).integers(0, 34, (20, 35), np.uint8)
        ids[0, :3] = 255  # license plates
        for kind, image in (("labelIds", ids), ("instanceIds", ids.astype(np.uint16) * 1000), ("color", ids)):
            put(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", png(image))
    return root


def test_cityscapes_as_torchvision_defines_it(tmp_path: Path) -> None:
    root = cityscapes_folder(tmp_path)
    train_ids = np.full(256, 255, np.uint8)
    for one in Cityscapes.classes:
        if 0 <= one.train_id < 255:
            train_ids[one.id] = one.train_id
    named = {one.train_id: one.name for one in Cityscapes.classes if 0 <= one.train_id < 255}
    for split, count in (("train", 2), ("val", 1)):
        ours, theirs = open_segmentation(root, split), Cityscapes(str(root), split, target_type="semantic")
        assert len(ours) == len(theirs) == count
        assert ours.classes == [named[number] for number in range(19)]
        found = {str(ours.path(index)): ours[index]["target"]["label_map"].numpy() for index in range(count)}
        for path, (_, label) in zip(theirs.images, theirs, strict=True):
            assert np.array_equal(found[path], train_ids[np.array(label)])


def test_samples_are_functions_of_seed_epoch_and_index(clean: Path) -> None:
    def batches(workers: int, seed: int = 0) -> list[torch.Tensor]:
        dataset = open_segmentation(clean, "train")
        dataset.transform, dataset.seed = train_pipeline(AugmentConfig(), 24), seed
        loader = make_loader(dataset, EvalBatches(len(dataset), 2), workers, collate=collate)
        return [part for batch in loader for part in (*batch["image"], *(t["label_map"] for t in batch["target"]))]

    alone, spread, other = batches(0), batches(2), batches(0, seed=1)
    assert len(alone) == 10
    assert all(torch.equal(a, b) for a, b in zip(alone, spread, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    assert {tuple(one.shape[-2:]) for one in alone} == {(24, 24)}


def test_batches_are_lists_of_plain_tensors(clean: Path) -> None:
    dataset = open_segmentation(clean, "val")
    batch = collate([dataset[0], dataset[2]])
    assert [type(image) for image in batch["image"]] == [torch.Tensor] * 2
    assert [type(target["label_map"]) for target in batch["target"]] == [torch.Tensor] * 2
    assert batch["index"].tolist() == [0, 2]
    assert batch["size"] == [(36, 40)] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(np.full((36, 40), 7, np.uint8)), r"the value 7 \(1,440 pixels\) of the label map is not a class"),
        (png(label_map(0, 20, 36)), r"it has 20x36 pixels, but the image .*001\.jpg has 40x36"),
        (encode(noise(1), "PNG"), "it has colors"),
        (png(np.random.default_rng(0).integers(0, 3, (36, 40), np.uint8))[:300], "truncated"),
        (encode(Image.fromarray(label_map(0)).convert("LA"), "PNG"), None),
    ],
    ids=["values", "size", "colors", "truncated", "opaque"],
)
def test_a_bad_label_map_stops_or_is_skipped(clean: Path, content: bytes, message: str | None) -> None:
    path = clean / "train" / "labels" / "001.png"
    path.write_bytes(content)
    dataset = open_segmentation(clean, "train")
    if message is None:
        assert dataset[1]["bad"] == ""
        return
    with pytest.raises(FishnetError, match=message) as caught:
        dataset[1]
    assert str(path) in str(caught.value)
    assert "fishnet data check segmentation" in str(caught.value)
    assert "\n" not in str(caught.value)
    skipping = open_segmentation(clean, "train", bad_images="skip")
    sample = skipping[1]
    assert sample["bad"] == str(clean / "train" / "images" / "001.jpg")
    assert np.array_equal(plain(sample["target"]["label_map"]).numpy(), label_map(2))
    assert skipping.bad_images == [sample["bad"]]


def test_labels_of_the_stored_pixels_of_a_rotated_photo(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"train": 1})
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = noise(5, 40, 36)
    for labels in (label_map(0, 40, 36), label_map(0, 36, 40)):
        put(root / "train" / "images" / "000.jpg", encode(photo, exif=exif.tobytes(), quality=95))
        put(root / "train" / "labels" / "000.png", png(labels))
        sample = open_segmentation(root, "train")[0]
        assert sample["target"]["label_map"].shape == labels.shape
        turned = photo if labels.shape == (36, 40) else photo.rotate(270, expand=True)
        difference = np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - np.array(turned))
        assert difference.mean() < 8


def test_images_without_a_partner_are_left_out_and_noted(clean: Path) -> None:
    (clean / "train" / "labels" / "000.png").unlink()
    (clean / "train" / "images" / "001.jpg").unlink()
    put(clean / "train" / "images" / "002.png", encode(noise(3), "PNG"))
    dataset = open_segmentation(clean, "train")
    assert [dataset.path(index).name for index in range(len(dataset))] == ["002.jpg", "003.jpg", "004.jpg"]
    assert [note.partition(": ")[2] for note in dataset.notes] == [
        "skipped 1 images without a label map, such as train/images/000.jpg",
        "skipped 1 label maps without an image, such as train/labels/001.png",
        "skipped 1 files whose stem another one has, such as train/images/002.png",
    ]


def test_folders_that_cannot_be_opened(clean: Path, tmp_path: Path) -> None:
    def message(root: Path, split: str = "train", **options) -> str:
        with pytest.raises(FishnetError) as caught:
            open_segmentation(root, split, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in message(tmp_path / "absent")
    assert "has no split 'validate'; available: train, val. Did you mean 'val'?" in message(clean, "validate")
    assert f"did you mean --data {clean}?" in message(clean / "train")
    assert "missing sun, unknown sky" in message(clean, classes=["sun", "road", "car"])
    assert "in another order" in message(clean, classes=["road", "sky", "car"])
    (clean / "test" / "images").mkdir(parents=True)
    assert "has images but no folder `labels`" in message(clean, "test")
    unsplit = data_folder(tmp_path / "unsplit", {"": 2})
    assert "`fishnet data split" in message(unsplit)
    for path in (clean / "val" / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem}_other.png"))
    assert "no image has a label map of the same stem: val/images/000.jpg and val/labels/000_other.png" in message(
        clean, "val"
    )
    for path in list((clean / "val" / "labels").iterdir()):
        path.rename(path.with_suffix(".jpg"))
    assert "are JPEG files, which change the values of pixels" in message(clean, "val")
    shutil.rmtree(clean / "val" / "labels")
    (clean / "val" / "labels").mkdir()
    assert "none of the 3 images has a label map" in message(clean, "val")
    only = put(tmp_path / "photos" / "a.jpg", noise(1)).parent
    assert "has no label maps in a known layout" in message(only)


def test_the_fingerprint_changes_with_the_data(clean: Path) -> None:
    first = open_segmentation(clean, "train").fingerprint()
    assert first == open_segmentation(clean, "train").fingerprint()
    assert first["images"] == 5
    (clean / "classes.json").write_text(json.dumps({**CLASSES, "classes": ["sky", "road", "van"]}))
    second = open_segmentation(clean, "train").fingerprint()
    put(clean / "train" / "labels" / "000.png", png(np.zeros((36, 40), np.uint8)))
    third = open_segmentation(clean, "train").fingerprint()
    assert len({one["sha256"] for one in (first, second, third)}) == 3
