"""Pictures of boxes, masks and keypoints."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image

from fishnet.data.run_lengths import encode
from fishnet.drawing.masks import paint_masks
from fishnet.drawing.regions import class_color, count_text, draw_regions, sheet

WHITE = torch.full((3, 60, 80), 255, dtype=torch.uint8)


def found(*corners: tuple[int, int, int, int], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    masks = torch.zeros(len(corners), 60, 80, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = 1
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels or [0] * len(corners)), "masks": masks}


def color_at(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture)[y, x].astype(int)


def test_where_masks_overlap_the_color_of_the_stronger_stays() -> None:
    alone = draw_regions(WHITE, found((10, 20, 50, 55)), ["a", "b"], longest=None)
    both = draw_regions(WHITE, found((10, 20, 50, 55), (30, 30, 70, 58), labels=[0, 1]), ["a", "b"], longest=None)
    # inside both masks, away from the frames of the boxes
    assert np.abs(color_at(alone, 40, 45) - color_at(both, 40, 45)).max() <= 1
    assert (color_at(alone, 40, 45) != 255).any()
    second = 0.55 * 255 + 0.45 * np.array(class_color(1))
    assert np.abs(color_at(both, 60, 45) - second).max() <= 2


def test_two_objects_of_one_class_are_told_apart_by_their_rims() -> None:
    two = found((5, 20, 40, 55), (40, 20, 75, 55))
    two["boxes"] = torch.tensor([[1.0, 1, 79, 59]] * 2)  # so that no frame lies on a rim
    picture = draw_regions(WHITE, two, ["a"], longest=None)
    rim, inside = color_at(picture, 40, 45), color_at(picture, 60, 45)
    assert np.abs(rim - inside).max() > 30


def test_masks_may_be_run_lengths_of_another_size() -> None:
    one = found((10, 20, 50, 55), (30, 30, 70, 58), labels=[0, 1])
    runs = {**one, "masks": encode(one["masks"])}
    assert (np.asarray(draw_regions(WHITE, one, ["a", "b"])) == np.asarray(draw_regions(WHITE, runs, ["a", "b"]))).all()
    small = {**one, "masks": encode(one["masks"][:, ::5, ::5].contiguous())}
    large = {**one, "masks": encode(one["masks"].repeat_interleave(3, 1).repeat_interleave(3, 2))}
    picture = np.asarray(draw_regions(WHITE, one, ["a", "b"], longest=None))
    assert (picture == np.asarray(draw_regions(WHITE, small, ["a", "b"], longest=None))).mean() > 0.9
    assert (picture == np.asarray(draw_regions(WHITE, large, ["a", "b"], longest=None))).all()


def test_masks_at_the_border_have_no_rim_there_and_empty_masks_are_not_drawn() -> None:
    pixels = np.full((20, 30, 3), 255, np.uint8)
    masks = torch.zeros(2, 20, 30)
    masks[0, 5:, 10:20] = 1
    paint_masks(pixels, masks, [(0, 0, 0), (200, 0, 0)])
    tint, rim = int(0.55 * 255), int(0.1 * 0.55 * 255)
    assert abs(int(pixels[19, 15, 0]) - tint) <= 1
    for row, column in ((5, 15), (10, 10), (10, 19)):
        assert abs(int(pixels[row, column, 0]) - rim) <= 1
    assert (pixels[:5] == 255).all()
    assert (pixels[:, :10] == 255).all()


def test_only_the_strongest_of_many_objects_are_drawn_and_their_number_is_written() -> None:
    image = torch.full((3, 240, 320), 255, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 10, 60, 60], [200, 150, 300, 220]]).repeat(60, 1)
    scores = torch.tensor([0.9, 0.1]).repeat(60)
    many = {"boxes": boxes, "labels": torch.zeros(120, dtype=torch.int64), "scores": scores}
    pixels = np.asarray(draw_regions(image, many, ["a"], note=False))
    assert (pixels[:80, :80] != 255).any()
    assert (pixels[140:, 190:] == 255).all()
    noted = np.asarray(draw_regions(image, many, ["a"]))
    assert (noted[-10:, :60] != pixels[-10:, :60]).any()
    assert count_text(120) == "50 of 120 objects drawn"
    assert (count_text(1), count_text(0), count_text(50)) == ("1 object", "0 objects", "50 objects")


def test_drawing_many_masks_takes_less_than_a_second() -> None:
    image = torch.full((3, 480, 640), 255, dtype=torch.uint8)
    masks = torch.zeros(100, 480, 640, dtype=torch.uint8)
    for place, mask in enumerate(masks):
        mask[4 * place : 4 * place + 80, 5 * place : 5 * place + 100] = 1
    boxes = torch.tensor([[5.0 * place, 4 * place, 5 * place + 100, 4 * place + 80] for place in range(100)])
    many = {"boxes": boxes, "labels": torch.arange(100) % 3, "masks": encode(masks)}
    start = time.process_time()
    draw_regions(image, many, ["a", "b", "c"])
    assert time.process_time() - start < 1


def test_small_images_are_enlarged_with_their_boxes() -> None:
    one = {"boxes": torch.tensor([[40.0, 30, 78, 58]]), "labels": torch.tensor([0])}
    picture = draw_regions(WHITE, one, ["a"])
    assert picture.size == (240, 180)
    pixels = np.asarray(picture)
    assert (pixels[80:, :115] == 255).all()
    assert (pixels[100:170, 120] != 255).any()


def test_an_image_without_objects_stays_as_it_is() -> None:
    picture = draw_regions(WHITE, found(), ["a"], longest=None)
    assert picture.size == (80, 60)
    assert (np.asarray(picture) == 255).all()


def test_pictures_are_scaled_and_boxes_with_them() -> None:
    image = torch.full((3, 600, 960), 255, dtype=torch.uint8)
    boxes = {"boxes": torch.tensor([[480.0, 300, 960, 600]]), "labels": torch.tensor([0])}
    picture = draw_regions(image, boxes, ["a"], longest=480)
    assert picture.size == (480, 300)
    pixels = np.asarray(picture)
    assert (pixels[:130] == 255).all()
    assert (pixels[160:, 240:246] != 255).any()


def test_keypoints_are_drawn_where_they_are_seen() -> None:
    black = torch.zeros(3, 60, 80, dtype=torch.uint8)
    points = torch.tensor([[[20.0, 30, 2], [60, 30, 0]]])
    one = {"boxes": torch.tensor([[1.0, 20, 78, 58]]), "labels": torch.tensor([0]), "keypoints": points}
    picture = draw_regions(black, one, ["a"], longest=None)
    assert color_at(picture, 20, 30).min() > 200
    assert color_at(picture, 60, 30).max() == 0


def test_a_sheet_holds_every_tile() -> None:
    tiles = [Image.new("RGB", (30 + 10 * i, 20), (i * 40, 0, 0)) for i in range(5)]
    page = np.asarray(sheet(tiles))
    for i in range(5):
        assert ((page == (i * 40, 0, 0)).all(-1)).sum() == (30 + 10 * i) * 20


def test_colors_of_classes_differ_and_stay() -> None:
    colors = [class_color(i) for i in range(80)]
    assert len(set(colors)) == 80
    assert colors == [class_color(i) for i in range(80)]
