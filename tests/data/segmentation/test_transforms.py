"""Augmentation moves the label map with its image; crops keep the balance of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from fishnet.data.augmentation import Photometric
from fishnet.data.geometry import plain
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.data.segmentation.transforms import (
    AugmentConfig,
    ClassCrop,
    RandomScale,
    eval_pipeline,
    prepared,
    train_pipeline,
)
from fishnet.errors import UsageError
from tests.data.makers import encode, put
from tests.data.segmentation.makers import data_folder


def sample_of(labels: np.ndarray) -> dict:
    """Return a sample whose image shows its label map: 80 x class in every channel, 10 where pixels are ignored."""
    shown = np.where(labels == 255, 10, 80 * np.minimum(labels, 3)).astype(np.uint8)
    image = tv_tensors.Image(torch.from_numpy(np.repeat(shown[None], 3, 0)))
    return {"image": image, "target": {"label_map": tv_tensors.Mask(torch.from_numpy(labels.copy()))}}


def numpy_of(sample: dict) -> np.ndarray:
    return plain(sample["target"]["label_map"]).numpy()


def blobs(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Return a label map of large regions of four classes."""
    small = np.random.default_rng(seed).integers(0, 4, (4, 5), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))


def test_image_and_label_map_stay_together() -> None:
    """The image shows two classes; a label map that is one pixel off would fit it worse."""
    pipeline = train_pipeline(AugmentConfig(photometric=False, crop=(80, 72)), 96)
    padded, misfits = 0, dict.fromkeys([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)], 0.0)
    for seed in range(30):
        torch.manual_seed(seed)
        moved = pipeline(sample_of(blobs(seed) // 2 * 3))
        image, labels = moved["image"][0].numpy(), numpy_of(moved)
        assert image.shape == labels.shape == (80, 72)
        border = labels == 255
        assert (image[border] == 114).all()
        rows, columns = np.flatnonzero(~border.all(1)), np.flatnonzero(~border.all(0))
        inside = (slice(0, rows.max() + 1), slice(columns.min(), columns.max() + 1))
        assert not border[inside].any()  # padded at the bottom and at one side, whole rows and columns
        assert columns.min() == 0 or columns.max() == 71
        shown, truth = image[inside] > 120, labels[inside] == 3
        clear = np.abs(image[inside].astype(int) - 120) > 12  # a pixel on the border of two classes has no truth
        for shift in misfits:
            misfits[shift] += (clear & (shown != np.roll(truth, shift, (0, 1))))[1:-1, 1:-1].mean() / 30
        padded += border.any()
    assert 0 < padded < 30
    aligned = misfits.pop((0, 0))
    assert aligned < 0.001
    assert min(misfits.values()) > 0.005


def test_scales_cover_the_range_and_are_relative_to_the_shorter_side() -> None:
    jitter = RandomScale(48, (0.5, 2.0))
    sides = []
    for seed in range(200):
        torch.manual_seed(seed)
        height, width = jitter(sample_of(blobs(0)))["target"]["label_map"].shape
        assert abs(width / height - 128 / 96) < 0.05
        sides.append(height / 48)
    assert 0.5 <= min(sides) < 0.55
    assert 1.9 < max(sides) <= 2.0
    assert abs(np.mean(sides) - 1.25) < 0.08
    torch.manual_seed(0)
    assert RandomScale(None, (1.0, 1.0))(sample_of(blobs(0)))["target"]["label_map"].shape == (96, 128)


def largest_share(labels: np.ndarray) -> float:
    values = labels[labels != 255]
    return float(np.unique(values, return_counts=True)[1].max() / values.size) if values.size else 1.0


def test_crops_are_drawn_again_while_one_class_fills_them() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[40:60, 40:60] = 1  # only crops near the center have much of it
    labels[:8] = 255
    shares: dict[float, list[float]] = {}
    for limit in (0.75, 1.0):
        shares[limit] = []
        for seed in range(300):
            torch.manual_seed(seed)
            crop = numpy_of(ClassCrop((30, 30), limit)(sample_of(labels)))
            assert crop.shape == (30, 30)
            shares[limit].append(largest_share(crop))
    above = {limit: float(np.mean(np.array(found) >= 0.75)) for limit, found in shares.items()}
    places = [labels[top : top + 30, left : left + 30] for top in range(71) for left in range(71)]
    once = float(np.mean([largest_share(place) >= 0.75 for place in places]))
    for limit, expected in ((1.0, once), (0.75, once**10)):  # ten crops in a row do not fit
        assert abs(above[limit] - expected) < 3 * (expected * (1 - expected) / 300) ** 0.5
    uniform = ClassCrop((30, 30))(sample_of(np.zeros((60, 60), np.uint8)))
    assert uniform["target"]["label_map"].shape == (30, 30)  # no crop fits: the last one is taken


def test_all_ignored_and_images_below_the_crop() -> None:
    ignored = ClassCrop((30, 30))(sample_of(np.full((60, 60), 255, np.uint8)))
    assert (ignored["target"]["label_map"] == 255).all()
    small = ClassCrop((50, 60), ignore_index=255)(sample_of(np.ones((20, 30), np.uint8)))
    labels = numpy_of(small)
    assert labels.shape == (50, 60)
    assert (labels[:20, :30] == 1).all()
    assert (labels == 255).sum() == 50 * 60 - 20 * 30


def test_wide_label_maps_are_moved_exactly() -> None:
    labels = np.kron(np.array([[0, 300], [399, 65535]]), np.ones((20, 20), np.int64)).astype(np.int64)
    torch.manual_seed(0)
    config = AugmentConfig(scale=(1.0, 1.0), crop=(48, 44), flip=1.0, photometric=False)
    moved = numpy_of(train_pipeline(config, 40, ignore_index=65535)(sample_of(labels)))
    assert np.array_equal(moved[:40, 4:44], labels[:, ::-1])
    assert (moved[40:] == 65535).all()


def test_evaluation_resizes_the_image_only(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"val": 2})  # 40 x 36 pixels
    dataset = open_segmentation(root, "val")
    truth = dataset[1]["target"]["label_map"]
    for size, longest, wanted in (
        (18, None, (18, 20)),
        (72, 60, (54, 60)),
        (None, None, (36, 40)),
        (None, 20, (18, 20)),
        ((30, 50), None, (30, 50)),
    ):
        dataset.transform = eval_pipeline(size, longest)
        sample = dataset[1]
        assert tuple(sample["image"].shape[-2:]) == wanted
        assert torch.equal(sample["target"]["label_map"], truth)
        assert sample["size"] == (36, 40)
        dataset.transform = None
        assert torch.equal(prepared(dataset[1]["image"], size, longest), sample["image"])


def test_photometric_distortion_keeps_labels_and_the_order_of_channels() -> None:
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 200
    distort = {"kept": Photometric(channels=False), "any": Photometric()}
    first = {"kept": set(), "any": set()}
    changed = 0
    for seed in range(60):
        for name, step in distort.items():
            torch.manual_seed(seed)
            found = step({"image": tv_tensors.Image(red), "target": {}})["image"].float().mean((1, 2))
            first[name].add(int(found.argmax()))
            changed += not torch.equal(found, red.float().mean((1, 2)))
    assert first["kept"] == {0}
    assert first["any"] == {0, 1, 2}
    assert changed > 60


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (AugmentConfig(scale=(2.0, 0.5)), 64, "augment.scale must be a range"),
        (AugmentConfig(scale=(0.0, 0.5)), 64, "augment.scale must be a range"),
        (AugmentConfig(max_class_share=0.0), 64, "augment.max_class_share must be above 0"),
        (AugmentConfig(flip=1.5), 64, "augment.flip must be a probability"),
        (AugmentConfig(crop=(0, 5)), 64, "augment.crop must be"),
        (AugmentConfig(), None, "needs the size of the crops"),
        (AugmentConfig(), 0, "--size must be at least 1 pixel"),
    ],
)
def test_settings_out_of_range(config: AugmentConfig, size: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_pipeline(config, size)


def test_a_picture_of_one_pixel_is_no_problem(tmp_path: Path) -> None:
    root = data_folder(tmp_path, {"train": 1})
    put(root / "train" / "images" / "000.jpg", encode(Image.new("RGB", (1, 1)), "PNG"))
    put(root / "train" / "labels" / "000.png", encode(Image.new("L", (1, 1), 2), "PNG"))
    dataset = open_segmentation(root, "train")
    dataset.transform = train_pipeline(AugmentConfig(), 16)
    assert dataset[0]["image"].shape == (3, 16, 16)
