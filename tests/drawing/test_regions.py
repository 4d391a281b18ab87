"""Pictures of boxes, masks and keypoints."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from fishnet.drawing.regions import class_color, draw_regions, sheet

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


def test_an_image_without_objects_stays_as_it_is() -> None:
    picture = draw_regions(WHITE, found(), ["a"], longest=None)
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
