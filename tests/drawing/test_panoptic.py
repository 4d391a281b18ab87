"""Panoptic maps on images: colors by category, outlines and names of objects, legend."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fishnet.data.panoptic import Category, PanopticMap, described
from fishnet.drawing.panoptic import draw_panoptic, paint_panoptic

CATEGORIES = [
    Category(id=7, name="cat", isthing=1),
    Category(id=3, name="sky", isthing=0),
    Category(id=5, name="background", isthing=0),
    Category(id=9, name="dog", isthing=1),
]
COLORS = np.array([[220, 30, 30], [30, 30, 220], [0, 200, 0], [200, 200, 0]], np.uint8)
GRAY = (100, 100, 100)


def scene(first: int = 7, second: int = 7) -> PanopticMap:
    """Sky above; two objects that touch below, then background, then void."""
    ids = np.zeros((240, 320), np.int32)
    ids[:100] = 1
    ids[100:200, :80], ids[100:200, 80:160], ids[100:200, 160:] = 2, 3, 4
    segments = [
        {"id": 2, "category_id": first}, {"id": 3, "category_id": second},
        {"id": 1, "category_id": 3}, {"id": 4, "category_id": 5},
    ]  # fmt: skip
    return described(ids, segments, {3, 5, first, second})


def drawn(panoptic: PanopticMap) -> np.ndarray:
    picture = paint_panoptic(Image.new("RGB", (320, 240), GRAY), panoptic, CATEGORIES, COLORS, clear=[2])
    return np.asarray(picture).astype(int)


def test_categories_have_their_colors_and_objects_their_outlines_and_names() -> None:
    found = drawn(scene())
    assert found.shape == (240, 320, 3)
    mixed = (np.array(GRAY) + 0.55 * (COLORS.astype(int) - GRAY)).round()
    assert np.abs(found[50, 160] - mixed[1]).max() <= 1  # sky
    for place in ((115, 20), (115, 140)):
        assert np.abs(found[place] - mixed[0]).max() <= 1  # both cats in one color
    assert (found[110:190, 170:310] == GRAY).all()  # the background shows the image
    assert np.ptp(found[210:, :], axis=2).max() < 12  # void is gray
    white = (found == 255).all(2)
    assert white[101:199, 79].all()  # objects of one class are told apart
    assert white[101:199, 80].all()
    assert not white[:99].any()  # stuff has no such outline
    assert not white[:, 170:].any()
    assert white[140:160, 25:55].sum() > 10  # names in the middle of the objects
    assert white[140:160, 105:135].sum() > 10
    assert (found[140:160, 25:55] != found[140:160, 105:135]).any()  # with different numbers


def test_colors_do_not_depend_on_what_else_is_in_the_image() -> None:
    both, dog = drawn(scene(7, 9)), drawn(scene(9, 9))
    assert (both[110:130, 90:150] == dog[110:130, 90:150]).all()
    assert (both[110:130, 10:70] != dog[110:130, 10:70]).any(2).all()
    assert (drawn(scene()) == drawn(scene())).all()


def test_the_legend_lists_what_occurs_and_small_images_are_enlarged() -> None:
    image = Image.new("L", (80, 60), 100)
    page = draw_panoptic(image, scene(), CATEGORIES, COLORS)
    assert page.width == 240
    assert page.height > 180
    legend = np.asarray(page)[180:].reshape(-1, 3).tolist()
    assert all(COLORS[place].tolist() in legend for place in (0, 1, 2))
    assert COLORS[3].tolist() not in legend  # there is no dog
    empty = described(np.zeros((60, 80), np.int32), [], set())
    assert np.ptp(np.asarray(draw_panoptic(image, empty, CATEGORIES)).astype(int)[:170], axis=2).max() < 12


def test_tiny_objects_are_not_named_and_names_stay_inside() -> None:
    ids = np.zeros((240, 320), np.int32)
    ids[0, 0:3] = 1
    ids[230:, 300:] = 2
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 9}]
    found = drawn(described(ids, segments, {7, 9}))
    assert (found[3:20, :60] != 255).any(2).all()
    assert (found[210:, 250:] == (31, 41, 51)).all(2).sum() > 100  # the box of the name
