"""Geometry moves everything together: a colored rectangle is a box, a mask and keypoints that must stay on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from fishnet.data.augmentation import Flip, Resize, ScaleJitter, cropped, eval_pipeline, resized, sanitize
from fishnet.data.detection.transforms import AugmentConfig, CopyPaste, IouCrop, Mosaic, train_pipeline
from fishnet.data.geometry import mask_boxes, plain
from fishnet.errors import UsageError

NAMES = ["nose", "left_eye", "right_eye"]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def sample(
    boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (120, 160), points: bool = False, first: int = 0
) -> Any:
    """Return rectangles on gray, the first with label `first`; a label has the color of its number."""
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        masks[index, y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] = torch.tensor(COLORS[(first + index) % 3], dtype=torch.uint8)[:, None, None]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
        "labels": first + torch.arange(len(boxes)),
        "masks": tv_tensors.Mask(masks),
    }
    if points:
        places = [[[x1, y1], [x1, (y1 + y2) / 2], [x2, (y1 + y2) / 2]] for x1, y1, x2, y2 in boxes]
        corners = torch.tensor(places, dtype=torch.float32).reshape(-1, 3, 2)
        target["keypoints"] = tv_tensors.KeyPoints(corners, canvas_size=size)
        target["keypoints_visibility"] = torch.tensor([2.0, 2, 1]).repeat(len(boxes), 1)
    return {"image": tv_tensors.Image(image), "target": target, "size": size, "index": 0}


def check(found: Any, covered: bool = False) -> None:
    """Check that boxes lie around their masks and masks on pixels of their color."""
    target, image = found["target"], found["image"]
    assert target["masks"].shape[-2:] == image.shape[-2:]
    assert tuple(target["boxes"].canvas_size) == tuple(image.shape[-2:])
    around = mask_boxes(target["masks"])
    assert len({len(value) for value in target.values()}) == 1
    for box, tight, mask, label in zip(target["boxes"], around, target["masks"], target["labels"], strict=True):
        if not covered:
            assert (box - tight).abs().max() <= 1.5, (box, tight)
        inner = image[:, mask.bool()].float()
        expected = torch.tensor(COLORS[int(label) % 3]).float()
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
    found = Flip(1.0, NAMES)(sample([(20, 30, 70, 80)], points=True))["target"]
    assert found["boxes"].tolist() == [[90, 30, 140, 80]]
    # the left eye stands where the right one was, seen in the mirror
    assert found["keypoints"].tolist() == [[[140, 30], [90, 55], [140, 55]]]
    assert found["keypoints_visibility"].tolist() == [[2, 1, 2]]
    assert Flip(0.0, NAMES)(sample([(20, 30, 70, 80)]))["target"]["boxes"].tolist() == [[20, 30, 70, 80]]


def test_keypoints_outside_count_as_absent() -> None:
    torch.manual_seed(1)
    found = ScaleJitter(64, (2.0, 2.0))(sample([(20, 30, 70, 80), (100, 70, 140, 115)], points=True))["target"]
    inside = ((plain(found["keypoints"]) >= 0) & (plain(found["keypoints"]) <= 64)).all(-1)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(inside, found["keypoints_visibility"] > 0)


def mosaic_of(own: Any) -> Any:
    """Return a mosaic with objects in one of its four images, drawn at random."""
    others = [sample([], points=True) for _ in range(4)]
    others[int(torch.randint(4, ()))] = own
    return Mosaic(1.0, 150)(others[0], iter(others[1:]).__next__)


def centroid(weights: Tensor) -> Tensor:
    """Return (x, y) of the center of mass in continuous coordinates."""
    rows, columns = (torch.arange(side) + 0.5 for side in weights.shape)
    return torch.stack([(weights.sum(0) * columns).sum(), (weights.sum(1) * rows).sum()]) / weights.sum()


TOGETHER: dict[str, Callable[[Any], Any]] = {
    "down": Resize([50], 200),
    "up": Resize([210], 400),
    "flip": Flip(1.0, NAMES),
    "jitter": ScaleJitter(96, (0.4, 2.0)),
    "iou crop": IouCrop(),
    "mosaic": mosaic_of,
    "paste": lambda own: CopyPaste(1.0, Flip(0.5, NAMES))(own, lambda: sample([BOXES[1]], points=True, first=2)),
}


@pytest.mark.parametrize("step", TOGETHER.values(), ids=TOGETHER.keys())
def test_pixels_boxes_masks_and_keypoints_agree_below_a_pixel(step: Callable[[Any], Any]) -> None:
    """The color of an object says where it is: all targets must agree with its center of mass in the image."""
    whole = 0
    for seed in range(12):
        torch.manual_seed(seed)
        found = step(sample([BOXES[0], (100, 64, 148, 115)], points=True))
        target, image = found["target"], plain(found["image"]).float()
        for place, color in enumerate(target["labels"].tolist()):
            box, mask = plain(target["boxes"])[place], plain(target["masks"])[place]
            points = plain(target["keypoints"])[place]
            weights = (image[color] - (image.sum(0) - image[color]) / 2).clamp(min=0)
            assert (centroid(weights) - centroid(mask.float())).abs().max() < 0.75
            tight = mask_boxes(mask[None])[0]
            assert (tight - box).abs().max() <= 0.75
            x1, y1, x2, y2 = points[:, 0].min(), points[0, 1], points[:, 0].max(), 2 * points[1, 1] - points[0, 1]
            corners = torch.stack([x1, y1, x2, y2])
            seen = target["keypoints_visibility"][place].min() > 0
            if seen and (tight - corners).abs().max() <= 0.5 and mask.sum() == (tight[2:] - tight[:2]).prod():
                whole += 1
                assert (corners - box).abs().max() < 1e-3
                assert (centroid(weights) - corners.reshape(2, 2).mean(0)).abs().max() < 0.1
    assert whole >= 6


def test_objects_that_leave_the_image_fall_away() -> None:
    spoilt = sample([(20, 30, 70, 80), (60, 10, 150, 60)])
    spoilt["target"]["boxes"][0] = torch.tensor([200.0, 10, 210, 20])
    left = sanitize(spoilt)["target"]
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


def covered_by(above: Any, points: bool = True, own: tuple[int, int, int, int] = BOXES[0]) -> Any:
    """Return a sample with one object, of which `above` covers a part."""
    torch.manual_seed(0)
    return CopyPaste(1.0, Flip(0.0))(sample([own], points=points), lambda: above)["target"]


def test_keypoints_come_along_with_pasted_objects_and_are_hidden_below_them() -> None:
    target = covered_by(sample([(60, 50, 90, 100)], points=True, first=1))
    assert target["labels"].tolist() == [0, 1]
    assert target["keypoints"].tolist() == [[[20, 30], [20, 55], [70, 55]], [[60, 50], [60, 75], [90, 75]]]
    # COCO: 2 is visible, 1 is labeled but not visible, 0 is not labeled
    assert target["keypoints_visibility"].tolist() == [[2, 2, 1], [2, 2, 1]]
    target = covered_by(sample([(10, 20, 40, 60)], points=True, first=1))
    assert target["keypoints_visibility"][0].tolist() == [1, 1, 1]
    absent = sample([BOXES[0]], points=True)
    absent["target"]["keypoints_visibility"][0, 0] = 0
    torch.manual_seed(0)
    under = CopyPaste(1.0, Flip(0.0))(absent, lambda: sample([(10, 20, 40, 60)], points=True))
    assert under["target"]["keypoints_visibility"][0].tolist() == [0, 1, 1]


def test_pasted_keypoints_are_mirrored_by_their_names() -> None:
    above = sample([(100, 50, 130, 100)], points=True, first=1)
    pipeline = train_pipeline(AugmentConfig(copy_paste=1.0, flip=1.0), 120, 160, NAMES)
    torch.manual_seed(0)
    target = pipeline.mixing[0](sample([BOXES[0]], points=True), lambda: above)["target"]
    assert target["keypoints"][1].tolist() == [[60, 50], [30, 75], [60, 75]]
    assert target["keypoints_visibility"][1].tolist() == [2, 1, 2]


def test_pasted_objects_are_mirrored_only_where_images_are() -> None:
    pipeline = train_pipeline(AugmentConfig(copy_paste=1.0, flip=0.0), 120, 160)
    for seed in range(8):
        torch.manual_seed(seed)
        found = pipeline(sample([]), lambda: sample([(100, 50, 130, 100)]))
        assert found["target"]["boxes"].tolist() in ([], [[100, 50, 130, 100]])


def test_pasted_keypoints_beyond_the_border_are_absent() -> None:
    above = sample([(60, 50, 90, 100)], size=(200, 80), points=True, first=1)
    above["target"]["keypoints"][0, 0, 1] = 150.0
    torch.manual_seed(0)
    found = CopyPaste(1.0, Flip(0.0))(sample([(2, 2, 9, 9)], points=True), lambda: above)
    assert tuple(found["target"]["keypoints"].canvas_size) == (120, 160)
    assert found["target"]["keypoints_visibility"][1].tolist() == [0, 2, 0]
    assert found["target"]["boxes"].tolist() == [[2, 2, 9, 9], [60, 50, 80, 100]]


def test_only_what_is_cut_loses_its_annotated_box() -> None:
    annotated = torch.tensor([[19.6, 29.7, 70.4, 80.2]])
    corner = sample([(55, 65, 90, 100)], first=1)
    corner["target"]["boxes"][0] = torch.tensor([54.7, 64.8, 90.3, 100.4])
    for above, expected in (
        (sample([(30, 40, 50, 60)], first=1), annotated[0].tolist()),  # a hole
        (corner, annotated[0].tolist()),  # a corner: the rest is as wide and high as before
        (sample([(60, 20, 90, 100)], first=1), [20, 30, 60, 80]),  # the right part
    ):
        below = sample([BOXES[0]])
        below["target"]["boxes"][:] = annotated
        torch.manual_seed(0)
        target = CopyPaste(1.0, Flip(0.0))(below, lambda above=above: above)["target"]
        assert target["boxes"][0].tolist() == pytest.approx(expected)
        # what is pasted whole keeps its annotated box as well
        assert torch.equal(plain(target["boxes"])[1], plain(above["target"]["boxes"])[0])


def letter_l() -> Any:
    """Return an L: a bar 10 wide and 60 high, with a foot 60 wide and 10 high; the box is rounded as annotators do."""
    shape = sample([(20, 30, 80, 90)], points=True)
    shape["target"]["masks"][0, 30:80, 30:80] = 0
    shape["target"]["boxes"][0] = torch.tensor([19.7, 29.8, 80.3, 90.4])
    return shape


@pytest.mark.parametrize(("place", "expected"), [
    ((0, 0, 70, 160), [20, 30, 30, 70]),  # without its foot the bar alone is left
    ((0, 40, 120, 120), [0, 80, 40, 90]),
    ((20, 10, 100, 150), [9.7, 9.8, 70.3, 70.4]),  # not cut
    ((0, 20, 120, 140), [0, 29.8, 60.3, 90.4]),  # the rounding is cut off, the object is whole
], ids=["top", "right", "whole", "rounding"])  # fmt: skip
def test_boxes_of_cut_objects_lie_around_what_is_left(place: tuple[int, int, int, int], expected: list[float]) -> None:
    top, left, height, width = place
    found = sanitize(cropped(letter_l(), top, left, height, width))["target"]
    assert found["boxes"].tolist() == [pytest.approx(expected)]
    boxes_only = letter_l()
    del boxes_only["target"]["masks"]
    clipped = plain(letter_l()["target"]["boxes"])[0] - torch.tensor([left, top, left, top])
    limits = torch.tensor([width, height, width, height])
    found = sanitize(cropped(boxes_only, top, left, height, width))["target"]
    assert found["boxes"].tolist() == [pytest.approx(torch.minimum(clipped.clamp(min=0), limits).tolist())]


@pytest.mark.parametrize("step", [ScaleJitter(60, (1.5, 2.5)), IouCrop(), mosaic_of], ids=["jitter", "iou", "mosaic"])
def test_every_crop_tightens_boxes(step: Callable[[Any], Any]) -> None:
    clipped = 0
    for seed in range(40):
        torch.manual_seed(seed)
        target = step(letter_l())["target"]
        for box, tight in zip(plain(target["boxes"]), mask_boxes(target["masks"]), strict=True):
            # the annotated box is up to half a pixel larger than the mask, before a scale of up to 2.5
            assert (box - tight).abs().max() < 2
            clipped += bool(torch.equal(box, tight))
    assert clipped >= 5


def test_a_mosaic_shows_four_images_without_gaps() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        found = Mosaic(1.0, 128)(sample([BOXES[0]]), lambda: sample([BOXES[2]]))
        assert found["image"].shape == (3, 128, 128)
        assert int(found["image"].amax(0).min()) > 0
        check(found)


def test_every_part_of_an_image_may_come_into_a_mosaic() -> None:
    far = sample([(250, 20, 290, 60)], size=(100, 300))
    tall = sample([(20, 250, 60, 290)], size=(300, 100))
    for own in (far, tall):
        shown = 0
        for seed in range(30):
            torch.manual_seed(seed)
            shown += len(Mosaic(1.0, 128)(own, lambda: sample([]))["target"]["labels"])
        assert shown >= 3


@pytest.mark.parametrize("settings", [
    {}, {"photometric": True, "iou_crop": True}, {"scale_jitter": (0.1, 2.0)}, {"copy_paste": 1.0, "mosaic": 1.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("boxes", [BOXES, []], ids=["objects", "empty"])
def test_every_pipeline_gives_usable_targets(settings: dict[str, Any], boxes: list[Any]) -> None:
    edges = [] if "scale_jitter" in settings else [64, 80]
    pipeline = train_pipeline(AugmentConfig(short_edges=edges, **settings), 96, 160, NAMES)
    for seed in range(5):
        torch.manual_seed(seed)
        np.random.seed(seed)
        target = pipeline(sample(boxes), lambda: sample(BOXES))["target"]
        assert bool((target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all())
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert target["masks"].dtype == torch.uint8
    plain = train_pipeline(AugmentConfig(short_edges=edges[:1], **settings), 96, 160)(sample(boxes), None)
    assert len(plain["target"]["labels"]) <= len(boxes)


@pytest.mark.parametrize(("settings", "message"), [
    ({"flip": 1.5}, "augment.flip"),
    ({"scale_jitter": (0.0, 2.0)}, "augment.scale_jitter"),
    ({"scale_jitter": (0.5, 2.0), "short_edges": [32]}, "both set the image size"),
    ({"short_edges": [0]}, "short_edges"),
])  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_pipeline(AugmentConfig(**settings), 96, 160)
    with pytest.raises(UsageError, match="smaller than --size"):
        train_pipeline(AugmentConfig(), 96, 64)


def unoutlined(boxes: list[tuple[int, int, int, int]], known: list[bool], **options: Any) -> Any:
    """Return a sample in which some objects have no outline; their masks are their boxes."""
    found = sample(boxes, **options)
    found["target"]["outlined"] = torch.tensor(known, dtype=torch.bool)
    return found


@pytest.mark.parametrize("settings", [
    {}, {"photometric": True, "iou_crop": True}, {"scale_jitter": (0.3, 2.0)}, {"copy_paste": 1.0, "mosaic": 1.0},
    {"copy_paste": 1.0},
], ids=str)  # fmt: skip
def test_what_has_an_outline_is_known_after_every_transform(settings: dict[str, Any]) -> None:
    """Objects of the second label have none."""
    pipeline = train_pipeline(AugmentConfig(**settings), 96, 160)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        np.random.seed(seed)
        own = unoutlined(BOXES, [True, False, True])
        target = pipeline(own, lambda: unoutlined(BOXES, [True, False, True]))["target"]
        assert target["outlined"].tolist() == (target["labels"] != 1).tolist()
        assert len(target["outlined"]) == len(target["masks"])
        seen |= set(target["outlined"].tolist())
    assert seen == {True, False}


def test_objects_without_an_outline_are_not_pasted() -> None:
    shown = []
    for seed in range(12):
        torch.manual_seed(seed)
        above = unoutlined([(100, 50, 130, 100), (20, 30, 60, 60)], [False, True], first=1)
        found = CopyPaste(1.0, Flip(0.0))(unoutlined([], []), lambda above=above: above)
        shown += found["target"]["labels"].tolist()
    assert set(shown) == {2}


def test_the_box_of_an_object_without_an_outline_is_cut_at_the_border_of_a_crop_and_not_at_pixels() -> None:
    one = unoutlined([(20, 30, 70, 80)], [False])
    one["target"]["boxes"][0] = torch.tensor([20.4, 30.4, 69.6, 79.6])
    assert cropped(one, 0, 0, 120, 50)["target"]["boxes"].tolist()[0] == pytest.approx([20.4, 30.4, 50, 79.6])
    one["target"]["outlined"] = torch.tensor([True])
    assert cropped(one, 0, 0, 120, 50)["target"]["boxes"].tolist()[0] == [20, 30, 50, 80]


def test_a_small_object_without_an_outline_stays() -> None:
    one = unoutlined([(20, 30, 22, 32)], [False])
    one["target"]["masks"] = tv_tensors.Mask(torch.zeros(1, 120, 160, dtype=torch.uint8))
    assert len(sanitize(one)["target"]["labels"]) == 1
    one["target"]["outlined"] = torch.tensor([True])
    assert len(sanitize(one)["target"]["labels"]) == 0
