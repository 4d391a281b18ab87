"""Geometry of samples: a bright rectangle is followed to a fraction of a pixel in every kind of target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F2

from fishnet.data import geometry
from fishnet.data.geometry import crop, flip, mask_boxes, pad, plain, rescale, resize

SIZE = (90, 120)
IGNORE = 255


def scene(box: tuple[int, int, int, int]) -> Any:
    """Return a black image with one white rectangle, and every kind of target that may lie on it."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[:, y1:y2, x1:x2] = 1
    corners = torch.tensor([[[x1, y1], [x2, y2], [-5, 3]]], dtype=torch.float32)
    boxes = torch.tensor([box], dtype=torch.float32)
    return {
        "image": tv_tensors.Image(mask.expand(3, -1, -1) * 255),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=SIZE),  # type: ignore[call-overload]
            "masks": tv_tensors.Mask(mask),
            "keypoints": tv_tensors.KeyPoints(corners, canvas_size=SIZE),
            "keypoints_visibility": torch.tensor([[2, 1, 0]]),
            "labels": torch.tensor([4]),
        },
        "label_map": tv_tensors.Mask(mask[0].long() * 7),
        "size": SIZE,
    }


def random_box(generator: np.random.Generator) -> tuple[int, int, int, int]:
    x1, y1 = generator.integers(12, [60, 40])
    x2, y2 = generator.integers([x1 + 9, y1 + 9], [108, 78])
    return int(x1), int(y1), int(x2), int(y2)


def centroid(weights: Tensor) -> Tensor:
    """Return (x, y) of the center of mass in continuous coordinates."""
    values = plain(weights).double()
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in values.shape)
    return torch.stack([(values.sum(0) * columns).sum(), (values.sum(1) * rows).sum()]) / values.sum()


def middles(sample: Any) -> dict[str, Tensor]:
    """Return where each kind of target has the middle of the rectangle."""
    target, label_map = sample["target"], sample["label_map"]
    return {
        "image": centroid(sample["image"][0]),
        "masks": centroid(target["masks"][0]),
        "label_map": centroid(torch.where(label_map == IGNORE, 0, label_map)),
        "boxes": plain(target["boxes"])[0].reshape(2, 2).double().mean(0),
        "keypoints": plain(target["keypoints"])[0, :2].double().mean(0),
    }


Step = Callable[[Any], Any]
STEPS: list[tuple[Step, Callable[[Tensor], Tensor]]] = [
    (partial(resize, size=(32, 43)), lambda p: p * torch.tensor([43 / 120, 32 / 90])),
    (partial(resize, size=(127, 151)), lambda p: p * torch.tensor([151 / 120, 127 / 90])),
    (partial(rescale, factor=1 / 3), lambda p: p / 3),
    (partial(crop, top=7, left=9, height=75, width=103), lambda p: p - torch.tensor([9, 7])),
    (partial(pad, border=[3, 5, 0, 8], ignore=IGNORE), lambda p: p + torch.tensor([3, 5])),
    (flip, lambda p: torch.stack([120 - p[0], p[1]])),
    (lambda s: flip(pad(crop(rescale(s, 0.77), 4, 6, 60, 80), [1, 0, 9, 2], ignore=IGNORE)),
     lambda p: torch.stack([90 - (p[0] * 92 / 120 - 6 + 1), p[1] * 69 / 90 - 4])),
]  # fmt: skip


@pytest.mark.parametrize(("step", "mapping"), STEPS, ids=["down", "up", "third", "crop", "pad", "flip", "all"])
def test_image_and_all_targets_stay_together(step: Step, mapping: Callable[[Tensor], Tensor]) -> None:
    generator = np.random.default_rng(0)
    offsets: dict[str, list[Tensor]] = {}
    for _ in range(60):
        before = scene(random_box(generator))
        after = step(before)
        expected = mapping(middles(before)["boxes"])
        for name, found in middles(after).items():
            offsets.setdefault(name, []).append(found - expected)
        assert after["target"]["labels"] is before["target"]["labels"]
        assert after["size"] == SIZE
        canvas = tuple(after["image"].shape[-2:])
        assert tuple(after["target"]["boxes"].canvas_size) == tuple(after["target"]["keypoints"].canvas_size) == canvas
        assert after["target"]["masks"].shape[-2:] == after["label_map"].shape == canvas
        assert after["label_map"].dtype == torch.int64
    for name, values in offsets.items():
        # a mask has no value between 0 and 1: each edge is off by up to half a pixel, but to no side in the mean
        largest, mean = (0.5, 0.1) if name in ("masks", "label_map") else (0.1, 0.02)
        assert torch.stack(values).abs().max() <= largest, name
        assert torch.stack(values).mean(0).abs().max() <= mean, name


@pytest.mark.parametrize("size", [(32, 43), (127, 151), (90, 60)], ids=str)
def test_masks_are_sampled_at_pixel_centers(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    for _ in range(10):
        x1, y1, x2, y2 = box = random_box(generator)
        rows = (np.arange(size[0]) + 0.5) * SIZE[0] / size[0]
        columns = (np.arange(size[1]) + 0.5) * SIZE[1] / size[1]
        drawn = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
        found = resize(scene(box), size)
        assert np.array_equal(found["target"]["masks"][0].numpy(), drawn)
        assert np.array_equal(found["label_map"].numpy(), 7 * drawn)


def test_small_masks_survive_a_round_trip_better_than_by_torchvision() -> None:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5  # type: ignore[misc]
    generator = np.random.default_rng(2)
    ours, theirs = [], []
    for _ in range(40):
        x, y, radius = *generator.uniform(20, 70, 2), generator.uniform(5, 9)
        mask = tv_tensors.Mask(torch.from_numpy((columns - x) ** 2 + (rows - y) ** 2 < radius**2).to(torch.uint8)[None])
        for scores, to in ((ours, lambda m, s: resize({"m": m}, s)["m"]), (theirs, lambda m, s: F2.resize(m, list(s)))):
            back = plain(to(to(mask, (32, 42)), SIZE)).bool()
            scores.append(float((back & mask.bool()).sum() / (back | mask.bool()).sum()))
    assert np.mean(ours) > 0.8
    assert np.mean(ours) > np.mean(theirs) + 0.1


def test_visibility_goes_with_the_points() -> None:
    before = scene((20, 30, 60, 70))
    assert flip(before)["target"]["keypoints_visibility"].tolist() == [[2, 1, 0]]
    # a point that a crop has lost stays lost in the padding
    lost = pad(crop(before, 35, 0, 55, 120), [0, 20, 0, 0], ignore=IGNORE)["target"]
    assert lost["keypoints_visibility"].tolist() == [[0, 1, 0]]
    assert lost["keypoints"][0, 0].tolist() == [20, 15]
    assert lost["keypoints_visibility"].dtype == torch.int64
    # the border belongs to the image
    edge = crop(before, 30, 20, 40, 40)["target"]
    assert edge["keypoints_visibility"].tolist() == [[2, 1, 0]]


def test_a_label_map_alone() -> None:
    label_map = torch.arange(12).reshape(3, 4)
    sample = {"image": tv_tensors.Image(torch.zeros(3, 3, 4)), "target": tv_tensors.Mask(label_map)}
    assert torch.equal(plain(flip(sample)["target"]), label_map.flip(1))
    padded = pad(sample, [1, 0, 0, 2], fill=9, ignore=IGNORE)
    assert padded["target"].tolist() == [[255, 0, 1, 2, 3], [255, 4, 5, 6, 7], [255, 8, 9, 10, 11], *[[255] * 5] * 2]
    assert padded["image"][:, :, 0].unique().tolist() == [9]
    with pytest.raises(ValueError, match="ignore"):
        pad(sample, [1, 0, 0, 2])
    with pytest.raises(ValueError, match="extends beyond"):
        crop(sample, 0, 2, 3, 4)
    with pytest.raises(ValueError, match="no tv_tensors, only the keys: image"):
        geometry.canvas_size({"image": torch.zeros(3, 3, 4)})


def test_boxes_around_masks_equal_torchvisions() -> None:
    from torchvision.ops import masks_to_boxes

    masks = torch.rand(20, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.99
    masks = masks[masks.flatten(1).any(1)]
    expected = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    assert torch.equal(mask_boxes(masks), expected)
    assert torch.equal(mask_boxes(masks.to(torch.uint8)), expected)
    assert mask_boxes(torch.zeros(2, 5, 6, dtype=torch.uint8)).tolist() == [[0, 0, 0, 0]] * 2
    assert mask_boxes(torch.zeros(0, 5, 6, dtype=torch.uint8)).shape == (0, 4)


def test_boxes_are_scaled_by_the_true_ratio_of_sizes() -> None:
    """A factor rounds to whole pixels for each side alone: boxes must follow the sizes, not the factor."""
    before = scene((20, 30, 60, 70))
    after = rescale(before, 0.337)
    assert after["image"].shape[-2:] == (30, 40)
    expected = v2.Resize((30, 40))(before["target"]["boxes"])
    assert torch.equal(plain(after["target"]["boxes"]), plain(expected))
