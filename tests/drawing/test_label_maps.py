"""Overlays of label maps: colors, outlines, ignored pixels, legends that fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.drawing import style
from fishnet.drawing.label_maps import (
    background_of,
    class_colors,
    draw_label_map,
    draw_legend,
    draw_row,
    paint_label_map,
    with_legend,
)
from fishnet.drawing.regions import class_color


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def cielab(colors: np.ndarray) -> np.ndarray:
    """Return sRGB colors (N, 3) in CIELAB, where distances are perceived ones (CIE 1976, D65)."""
    share = colors / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    rows = ([0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505])
    x, y, z = (np.cbrt(linear @ np.array(row) / sum(row)) for row in rows)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def test_colors_are_distinct_and_stay() -> None:
    places = cielab(class_colors(32))
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(places, 2)) > 12
    assert np.hypot(*places[:, 1:].T).min() > 15  # none is gray, as ignored pixels are
    assert np.array_equal(class_colors(11), class_colors(40)[:11])
    assert tuple(class_colors(3)[2].tolist()) == class_color(2)  # the color of its boxes
    assert len(np.unique(class_colors(150), axis=0)) == 150
    assert class_colors(400).shape == (400, 3)
    assert class_colors(0).shape == (0, 3)


def test_a_palette_of_the_data_set_is_used() -> None:
    assert class_colors(2, [[1, 2, 3], [4, 5, 6]]).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert class_colors(3, [[1, 2, 3]])[1:].tolist() == class_colors(3)[1:].tolist()


def test_regions_are_mixed_with_the_image_and_outlined() -> None:
    image = Image.new("RGB", (300, 240), (100, 100, 100))
    labels = np.zeros((120, 150), np.uint8)  # half of the size
    labels[:, 75:] = 1
    labels[:60] = 255
    colors = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    found = pixels(draw_label_map(image, torch.from_numpy(labels), colors, opacity=0.5))
    assert found[200, 20].tolist() == [150, 50, 50]
    assert found[200, 280].tolist() == [50, 50, 150]
    assert found[200, 150, 2] > 180  # the outline is opaque
    hatched = found[10:100, 10:290].reshape(-1, 3)
    assert len(np.unique(hatched, axis=0)) == 2
    assert (np.ptp(hatched, axis=1) < 12).all()  # gray
    assert pixels(image).min() == pixels(image).max() == 100  # the caller's image is as it was


def test_the_background_is_outlined_but_not_painted() -> None:
    assert background_of(["Background ", "cat"]) == {0}
    assert background_of(["cat", "background"]) == background_of([]) == frozenset()
    image = Image.new("RGB", (60, 40), (90, 100, 110))
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    colors = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    found = pixels(paint_label_map(image, labels, colors, opacity=0.5, clear={0}))
    assert found.shape == (40, 60, 3)  # not enlarged
    assert (found[:, :29] == (90, 100, 110)).all()
    assert (found[:, 32:] == (45, 50, 155)).all()
    assert found[20, 30, 2] > 190
    legend = pixels(draw_legend([0, 1, 255], ["background", "cat"], colors, 400, {0}))
    flat = legend.reshape(-1, 3).tolist()
    assert [0, 0, 200] in flat
    assert [200, 0, 0] not in flat


def test_small_images_are_enlarged_and_large_ones_reduced() -> None:
    labels = np.zeros((32, 32), np.uint8)
    assert draw_label_map(Image.new("L", (32, 32)), labels, class_colors(1)).size == (256, 256)
    assert draw_label_map(Image.new("RGBA", (1000, 500)), labels, class_colors(1), longest=500).size == (500, 250)
    assert draw_label_map(Image.new("RGB", (30, 3000)), labels, class_colors(1), longest=480).height == 480
    assert draw_label_map(Image.new("RGB", (1, 1)), labels[:1, :1], class_colors(1)).size == (240, 240)


@pytest.mark.parametrize("width", [240, 300, 480, 1600])
@pytest.mark.parametrize("names", [["sky", "road"], ["a rather long name of a class " * 4, "b"], ["日本 имя"] * 30])
def test_legends_fit(width: int, names: list[str]) -> None:
    colors = class_colors(len(names))
    strip = draw_legend([*range(len(names)), 255], names, colors, width)
    assert strip.width == width
    found = pixels(strip)
    paper, ink = found[0, 0], np.array([int(style.INK[place : place + 2], 16) for place in (1, 3, 5)])
    assert (found[:, -1] == paper).all()  # nothing is cut off at the right
    assert (found == ink).all(-1).any()
    for color in colors[:30]:
        assert (found == color).all(-1).sum() >= 14 * 14


def test_legends_list_what_occurs() -> None:
    colors, names = class_colors(3), ["sky", "road", "car"]
    picture = Image.new("RGB", (300, 100))
    some = pixels(with_legend(picture, [np.array([[0, 0]]), np.array([[2]])], names, colors))
    assert (some == colors[0]).all(-1).any()
    assert (some == colors[2]).all(-1).any()
    assert not (some == colors[1]).all(-1).any()
    assert some.shape == (132, 300, 3)
    assert with_legend(picture, [], names, colors).size == (300, 100)


def test_row_of_image_truth_and_prediction() -> None:
    image, labels = Image.new("RGB", (600, 300), "white"), np.zeros((300, 600), np.uint8)
    row = draw_row(image, [("truth", labels), ("prediction", labels + 1)], ["a", "b"], class_colors(2), longest=300)
    assert row.width == 3 * 300 + 4 * 8
    found = pixels(row)
    assert found[100, 20].tolist() == [255, 255, 255]
    assert found[100, 400].tolist() != found[100, 700].tolist()
