"""Captions in a corner of a picture, such as a frame of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fishnet.drawing import style
from fishnet.drawing.regions import Color

_OPACITY = 0.6
_SMALLEST = 11
_MOST = 12


class Line(NamedTuple):
    """A line of text."""

    text: str
    color: Color | None = None
    """Color of the square before the text; None draws no square."""


def caption(image: Image.Image, lines: Sequence[Line]) -> Image.Image:
    """Return an image with lines of text on a dark background in its upper left corner; at most 12 lines are shown."""
    picture = image.convert("RGB")
    picture = picture.copy() if picture is image else picture
    if not lines:
        return picture
    size = max(_SMALLEST, picture.height // 32)
    face, gap, step = style.font(size), size // 2, round(1.35 * size)
    room = max(1, picture.width - 3 * gap)
    marks = [step if line.color is not None else 0 for line in lines]
    shown = [style.shorten(line.text, room - mark, face) for line, mark in zip(lines, marks, strict=True)][:_MOST]
    width = max(round(face.getlength(text)) + mark for text, mark in zip(shown, marks, strict=False)) + 2 * gap
    box = (0, 0, min(picture.width, width), min(picture.height, len(shown) * step + gap))
    ground = picture.crop(box)
    picture.paste(Image.blend(ground, Image.new("RGB", ground.size, "black"), _OPACITY), box[:2])
    draw = ImageDraw.Draw(picture)
    for number, (text, line, mark) in enumerate(zip(shown, lines, marks, strict=False)):
        top = gap // 2 + number * step
        if line.color is not None:
            draw.rectangle((gap, top + 1, gap + size, top + 1 + size), fill=line.color)
        draw.text((gap + mark, top), text, fill="white", font=face)
    return picture
