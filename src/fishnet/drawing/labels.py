"""Labels of boxes, placed so that they do not cover each other where there is room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import ImageDraw, ImageFont

from fishnet.drawing import style

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
_PAD = 2


class Label(NamedTuple):
    """Text of a box."""

    box: Box
    name: str
    """Name of the class, which is shortened if it is long."""
    value: str
    """Text after the name, such as the score; it is not shortened."""
    paper: tuple[int, int, int]
    ink: str


def draw_labels(draw: ImageDraw.ImageDraw, labels: Sequence[Label], size: tuple[int, int], points: int) -> None:
    """Write the label of each box at its edge: the first free place above, below or inside it.

    If there is no free place, the label is written where it covers least of those before.

    Args:
        draw: Picture.
        labels: Labels, the most important first; these are on top where labels cover each other.
        size: Width and height of the picture.
        points: Font size in pixels.
    """
    face = style.font(points)
    ascent = sum(face.getmetrics()) if isinstance(face, ImageFont.FreeTypeFont) else points
    height, placed = ascent + _PAD, list[Box]()
    texts = [_text(label, size[0], face) for label in labels]
    for label, text in zip(labels, texts, strict=True):
        needed = math.ceil(face.getlength(text)) + 2 * _PAD, height
        placed.append(free_place(_places(label.box, needed), needed, size, placed))
    for label, text, area in reversed(list(zip(labels, texts, placed, strict=True))):
        draw.rectangle(area, fill=label.paper)
        draw.text((area[0] + _PAD, area[1] + _PAD / 2), text, fill=label.ink, font=face)


def _text(label: Label, width: int, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text of a label, at most a third of the picture wide and, in a narrow picture, at most all of it."""
    end = f" {label.value}" if label.value else ""
    room = min(max(width / 3, 90), width - 2 * _PAD) - face.getlength(end)
    return style.shorten(label.name, room, face) + end


def free_place(
    corners: Iterable[tuple[float, float]], label: tuple[float, float], picture: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """Return the first area for a label that does not overlap others, or the one with the smallest overlap.

    Args:
        corners: Possible left and top of the label, the most natural first; they are moved into the picture.
        label: Width and height of the label.
        picture: Width and height of the picture.
        taken: Areas of the labels before.
    """
    best, least = (0.0, 0.0, *label), float("inf")
    for x, y in corners:
        left = min(max(0.0, round(x)), max(0.0, picture[0] - 1 - label[0]))
        top = min(max(0.0, round(y)), max(0.0, picture[1] - 1 - label[1]))
        area = (left, top, left + label[0], top + label[1])
        covered = sum(_overlap(area, other) for other in taken)
        if covered < least:
            best, least = area, covered
        if not covered:
            break
    return best


def _places(box: Box, label: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """Return left and top of a label at the edges of a box, from the most to the least natural place."""
    (left, top, right, bottom), (width, height) = box, label
    for y in (top - height - 1, bottom + 1, top + 1, bottom - height - 1):
        yield left, y
        yield right - width, y
    for step in range(1, 4):
        for y in (top - height - 1 - step * (height + 1), bottom + 1 + step * (height + 1)):
            yield left, y


def _overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    across, down = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)
