"""Places of the labels of boxes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from fishnet.drawing.labels import Box, Label, draw_labels, free_place

BLUE, RED = (0, 0, 255), (255, 0, 0)


def drawn(*labels: Label, size: tuple[int, int] = (300, 200)) -> np.ndarray:
    picture = Image.new("RGB", size, "white")
    draw_labels(ImageDraw.Draw(picture), labels, size, 12)
    return np.asarray(picture)


def area(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((pixels == color).all(-1).sum())


def label(box: Box, color: tuple[int, int, int], name: str = "person") -> Label:
    return Label(box, name, "97", color, "white")


def test_the_labels_of_neighbors_do_not_cover_each_other() -> None:
    box = (50.0, 60.0, 150.0, 160.0)
    alone = area(drawn(label(box, RED)), RED)
    both = drawn(label(box, BLUE), label(box, RED))
    assert area(both, RED) > 0.95 * alone
    assert area(both, BLUE) > 0.95 * alone


def test_labels_stay_in_the_picture() -> None:
    for box in ((-20.0, -20.0, 10.0, 10.0), (290.0, 190.0, 320.0, 230.0), (0.0, 0.0, 299.0, 199.0)):
        assert area(drawn(label(box, RED)), RED) == area(drawn(label((50.0, 60.0, 150.0, 160.0), RED)), RED)


def test_the_first_label_is_on_top_if_there_is_no_room() -> None:
    box = (0.0, 0.0, 40.0, 14.0)
    pixels = drawn(*[label(box, BLUE)] + [label(box, RED)] * 9, size=(60, 20))
    assert area(pixels, BLUE) == area(drawn(label(box, BLUE), size=(60, 20)), BLUE)


def test_long_names_are_shortened_to_a_third_of_the_picture() -> None:
    pixels = drawn(label((50.0, 60.0, 150.0, 160.0), RED, "a name that goes on and on and on"))
    columns = np.flatnonzero((pixels == RED).all(-1).any(0))
    assert np.ptp(columns) <= 300 / 3 + 4


def test_without_a_free_place_the_smallest_overlap_is_chosen() -> None:
    taken = [(0.0, 0.0, 100.0, 30.0)]
    assert free_place([(0, 0), (0, 25), (0, 10)], (20, 10), (100, 36), taken) == (0, 25, 20, 35)
    assert free_place([(0, 0), (0, 35)], (20, 10), (100, 100), taken) == (0, 35, 20, 45)
