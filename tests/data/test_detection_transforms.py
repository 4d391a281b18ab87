"""Geometry moves everything together: a coloured rectangle is a box, a mask and keypoints that must stay on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from fishnet.config import RegionAugmentConfig
from fishnet.data.detection_transforms import (
    CopyPaste,
    Flip,
    IouCrop,
    Mosaic,
    Resize,
    ScaleJitter,
    eval_pipeline,
    mask_boxes,
    mirrored_order,
    resized,
    sanitise,
    train_pipeline,
)
from fishnet.errors import UsageError

NAMES = ["nose", "left_eye", "right_eye"]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def sample(boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (120, 160), points: bool = False) -> Any:
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        masks[index, y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] = torch.tensor(COLOURS[index % 3], dtype=torch.uint8)[:, None, None]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
        "labels": torch.arange(len(boxes)),
        "masks": tv_tensors.Mask(masks),
    }
    if points:
        places = [[[x1, y1, 2], [x1, (y1 + y2) / 2, 2], [x2 - 1, (y1 + y2) / 2, 1]] for x1, y1, x2, y2 in boxes]
        target["keypoints"] = torch.tensor(places, dtype=torch.float32).reshape(-1, 3, 3)
    return {"image": tv_tensors.Image(image), "target": target, "size": size, "index": 0}


def check(found: Any, covered: bool = False) -> None:
    """Check that boxes lie around their masks and masks on pixels of their colour."""
    target, image = found["target"], found["image"]
    assert target["masks"].shape[-2:] == image.shape[-2:]
    assert tuple(target["boxes"].canvas_size) == tuple(image.shape[-2:])
    around = mask_boxes(target["masks"])
    assert len({len(value) for value in target.values()}) == 1
    for box, tight, mask, label in zip(target["boxes"], around, target["masks"], target["labels"], strict=True):
        if not covered:
            assert (box - tight).abs().max() <= 1.5, (box, tight)
        inner = image[:, mask.bool()].float()
        expected = torch.tensor(COLOURS[int(label) % 3]).float()
        # resizing blurs the edges only
        assert (inner.median(1).values - expected).abs().max() < 30


BOXES = [(20, 30, 70, 80), (60, 10, 150, 60), (100, 70, 140, 115)]


@pytest.mark.parametrize("step", [
    Flip(1.0), Resize([60], 200), Resize([300], 320), ScaleJitter(96, (0.3, 0.6)), ScaleJitter(96, (1.2, 2.0)),
    IouCrop(),
], ids=repr)  # fmt: skip
def test_everything_moves_together(step: Callable[[Any], Any]) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        found = step(sample([BOXES[0], BOXES[2]]))
        check(found)
        if isinstance(step, ScaleJitter):
            assert found["image"].shape == (3, 96, 96)


def test_sizes_after_resizing() -> None:
    assert Resize([60], 200)(sample(BOXES))["image"].shape == (3, 60, 80)
    assert Resize([300], 320)(sample(BOXES))["image"].shape == (3, 240, 320)
    found = eval_pipeline(60, 200)(sample(BOXES))
    assert torch.equal(found["image"], resized(sample(BOXES)["image"].as_subclass(Tensor), 60, 200))
    assert found["size"] == (120, 160)
    sides = {Resize([48, 60, 72], 200)(sample(BOXES))["image"].shape[1] for _ in range(30)}
    assert sides == {48, 60, 72}


def test_mirrored_keypoints_change_names() -> None:
    assert mirrored_order(NAMES) == [0, 2, 1]
    found = Flip(1.0, NAMES)(sample([(20, 30, 70, 80)], points=True))
    points = found["target"]["keypoints"][0]
    # the left eye stands where the right one was, seen in the mirror
    assert points[1].tolist() == [160 - 69 - 1, 55, 1] or points[1].tolist() == [160 - 69, 55, 1]
    assert points[2][2] == 2
    assert Flip(0.0, NAMES)(sample([(20, 30, 70, 80)]))["target"]["boxes"].tolist() == [[20, 30, 70, 80]]


def test_keypoints_outside_count_as_absent() -> None:
    torch.manual_seed(1)
    found = ScaleJitter(64, (2.0, 2.0))(sample([(20, 30, 70, 80), (100, 70, 140, 115)], points=True))
    for points in found["target"]["keypoints"]:
        inside = ((points[:, :2] >= 0) & (points[:, :2] < 64)).all(1)
        assert bool((inside | (points[:, 2] == 0)).all())


def test_objects_that_leave_the_image_fall_away() -> None:
    spoilt = sample([(20, 30, 70, 80), (60, 10, 150, 60)])
    spoilt["target"]["boxes"][0] = torch.tensor([200.0, 10, 210, 20])
    left = sanitise(spoilt)["target"]
    assert left["labels"].tolist() == [1]
    assert len(left["masks"]) == 1


def test_pasted_objects_hide_those_below() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        found = CopyPaste(1.0, Flip(0.5))(sample([BOXES[0]]), lambda: sample(BOXES[1:]))
        assert len(found["target"]["labels"]) >= 1
        assert int(found["target"]["masks"].as_subclass(Tensor).sum(0).max()) == 1
        check(found)
    hidden = CopyPaste(1.0, lambda s: s)(sample([(25, 35, 60, 70)]), lambda: sample([BOXES[0]]))
    assert len(hidden["target"]["labels"]) == 1


def test_a_mosaic_shows_four_images_without_gaps() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        found = Mosaic(1.0, 128)(sample([BOXES[0]]), lambda: sample([BOXES[2]]))
        assert found["image"].shape == (3, 128, 128)
        assert int(found["image"].amax(0).min()) > 0
        check(found)


@pytest.mark.parametrize("settings", [
    {}, {"photometric": True, "iou_crop": True}, {"scale_jitter": (0.1, 2.0)}, {"copy_paste": 1.0, "mosaic": 1.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("boxes", [BOXES, []], ids=["objects", "empty"])
def test_every_pipeline_gives_usable_targets(settings: dict[str, Any], boxes: list[Any]) -> None:
    edges = [] if "scale_jitter" in settings else [64, 80]
    pipeline = train_pipeline(RegionAugmentConfig(short_edges=edges, **settings), 96, 160, NAMES)
    for seed in range(5):
        torch.manual_seed(seed)
        np.random.seed(seed)
        target = pipeline(sample(boxes), lambda: sample(BOXES))["target"]
        assert bool((target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all())
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert target["masks"].dtype == torch.uint8
    plain = train_pipeline(RegionAugmentConfig(short_edges=edges[:1], **settings), 96, 160)(sample(boxes), None)
    assert len(plain["target"]["labels"]) <= len(boxes)


@pytest.mark.parametrize(("settings", "message"), [
    ({"flip": 1.5}, "region.flip"),
    ({"scale_jitter": (0.0, 2.0)}, "region.scale_jitter"),
    ({"scale_jitter": (0.5, 2.0), "short_edges": [32]}, "both choose the size"),
    ({"short_edges": [0]}, "short_edges"),
])  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_pipeline(RegionAugmentConfig(**settings), 96, 160)
    with pytest.raises(UsageError, match="smaller than --size"):
        train_pipeline(RegionAugmentConfig(), 96, 64)
