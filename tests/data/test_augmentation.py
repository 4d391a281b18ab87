"""Augmentation that tasks share: a label map moves with the image, its boxes and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from fishnet.data.augmentation import Flip, Photometric, Resize, ScaleJitter, cropped, random_crop, sanitize
from fishnet.data.detection.transforms import CopyPaste, IouCrop, Mosaic
from fishnet.data.geometry import IGNORE, Sample, plain


def blocks(boxes: bool, turned: bool = False) -> Sample:
    """Return an image of 4x6 blocks of 16 pixels, whose value is written in the label map, with one object or none."""
    values = torch.arange(24).reshape(4, 6).repeat_interleave(16, 0).repeat_interleave(16, 1)
    values = 23 - values if turned else values
    target: dict[str, Any] = {"label_map": tv_tensors.Mask(values.to(torch.uint8))}
    if boxes:
        place = torch.tensor([[16.0, 16.0, 48.0, 32.0]])
        masks = ((values == values[16, 16]) | (values == values[16, 32])).to(torch.uint8)[None]
        target["boxes"] = tv_tensors.BoundingBoxes(place, format="XYXY", canvas_size=(64, 96))
        target |= {"labels": torch.tensor([0]), "masks": tv_tensors.Mask(masks)}
    image = (10 * values).to(torch.uint8)[None].repeat(3, 1, 1)
    return {"image": tv_tensors.Image(image), "target": target, "index": 0}


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        Flip(1.0), Resize([128], 400), Resize([32], 400), ScaleJitter(96, (0.5, 0.5)), ScaleJitter(64, (2.0, 2.0)),
        lambda sample: sanitize(cropped(sample, 5, 9, 40, 70)), lambda sample: sanitize(random_crop(sample, 33, 20)),
    ],
    ids=["flip", "larger", "smaller", "jitter with a border", "jitter with a crop", "crop", "random crop"],
)  # fmt: skip
def test_a_label_map_moves_with_the_image(transform: Callable[[Sample], Sample], boxes: bool) -> None:
    torch.manual_seed(3)
    moved = transform(blocks(boxes))
    image, labels = plain(moved["image"])[0].int(), plain(moved["target"]["label_map"]).int()
    assert labels.shape == image.shape
    assert labels.dtype != torch.float32
    seen = labels != IGNORE
    assert bool(((image == 114) | seen).all()), "only new pixels are ignored"
    assert set(labels[seen].unique().tolist()) <= set(range(24)), "labels are never mixed"
    # away from the edges of the blocks, where bilinear pixels lie between two, the label is the block
    exact = seen & (image % 10 == 0)
    assert (image[exact] // 10 == labels[exact]).float().mean() > 0.97
    assert exact.float().sum() > 0.5 * seen.sum()
    for place, mask in zip(moved["target"].get("boxes", []), moved["target"].get("masks", []), strict=True):
        x1, y1, x2, y2 = (round(value) for value in place.tolist())
        inside = plain(mask)[y1:y2, x1:x2].bool()
        assert inside.float().mean() > 0.9
        assert set(labels[y1:y2, x1:x2][inside].unique().tolist()) <= {7, 8}


def test_colors_change_no_label() -> None:
    torch.manual_seed(0)
    before = blocks(True)
    after = Photometric()(before)
    assert not torch.equal(after["image"], before["image"])
    assert torch.equal(after["target"]["label_map"], before["target"]["label_map"])


def test_an_object_that_leaves_takes_no_label_map_with_it() -> None:
    moved = sanitize(cropped(blocks(True), 40, 60, 20, 30))
    assert len(moved["target"]["boxes"]) == len(moved["target"]["masks"]) == len(moved["target"]["labels"]) == 0
    assert plain(moved["target"]["label_map"]).shape == (20, 30)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["iou crop", "mosaic", "copy-paste"])
def test_label_maps_are_mixed_as_the_images_are(name: str, seed: int) -> None:
    torch.manual_seed(seed)

    def draw() -> Sample:
        return blocks(True, turned=True)

    moved = {
        "iou crop": lambda: IouCrop()(blocks(True)),
        "mosaic": lambda: Mosaic(1.0, 160)(blocks(True), draw),
        "copy-paste": lambda: CopyPaste(1.0, Flip(0.0))(blocks(True), draw),
    }[name]()
    image, labels = plain(moved["image"])[0].int(), plain(moved["target"]["label_map"]).int()
    assert labels.shape == image.shape
    assert not (labels == IGNORE).any(), "every pixel belongs to one of the images"
    # away from the edges of the blocks, where bilinear pixels lie between two, the label is the block
    exact = image % 10 == 0
    assert (image[exact] // 10 == labels[exact]).float().mean() > 0.97
    if name == "copy-paste":
        assert torch.equal(image, 10 * labels)
        assert not torch.equal(labels, plain(blocks(True)["target"]["label_map"]).int())


@pytest.mark.parametrize("mix", [Mosaic(1.0, 160), CopyPaste(1.0, Flip(0.0))], ids=["mosaic", "copy-paste"])
@pytest.mark.parametrize("missing", ["own", "other"])
def test_pixels_of_an_image_without_label_map_are_ignored(mix: Mosaic | CopyPaste, missing: str) -> None:
    torch.manual_seed(0)
    own, other = blocks(True), blocks(True, turned=True)
    del (own if missing == "own" else other)["target"]["label_map"]
    labels = plain(mix(own, lambda: other)["target"]["label_map"])
    assert 0 < (labels == IGNORE).sum() < labels.numel()
    assert labels.dtype == torch.uint8
