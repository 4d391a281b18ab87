"""Draw label maps on their images, with one color per class."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fishnet.data.segmentation.coding import Color, LabelCoding

_OPACITY = 0.6
_FOG = 0.75
"""Share of white on ignored pixels."""
_TILE = 320
_GAP, _LINE = 10, 20
_PAPER, _INK = "#eef1f5", "#1f2933"
_FIRST: tuple[Color, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (240, 228, 66), (86, 180, 233),
)  # fmt: skip
"""Colors of Okabe and Ito (Color Universal Design, 2008)."""
_CLEAR = ("background", "void", "unlabeled", "other")


@dataclass
class Tile:
    """Image of a contact sheet."""

    image: Image.Image
    label_map: np.ndarray
    """(H, W), class indices and the index to ignore."""
    title: str


def class_colors(coding: LabelCoding) -> list[Color | None]:
    """Return the color of each class: that of the palette, else one that differs from the others; None for background.

    The background is not colored, so that the image shows.
    """
    found: list[Color | None] = []
    for index, name in enumerate(coding.classes):
        if coding.palette is not None:
            found.append(coding.palette[index])
        else:
            found.append(None if index == 0 and name.strip().lower() in _CLEAR else _color(index))
    return found


def _color(index: int) -> Color:
    if index < len(_FIRST):
        return _FIRST[index]
    # hues that are the golden angle apart
    saturation, brightness = 0.5 + 0.4 * (index % 2), 0.9 - 0.15 * (index % 3)
    red, green, blue = colorsys.hsv_to_rgb((0.11 + 0.61803398875 * index) % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: Image.Image, label_map: np.ndarray, colors: Sequence[Color | None]) -> Image.Image:
    """Draw a label map on its image; ignored pixels are white fog, and classes are outlined.

    Args:
        image: Image of any size; the label map is resized to it.
        label_map: Class indices (H, W); indices from len(colors) on are ignored.
        colors: Color of each class; None leaves the image as it is.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    height, width = pixels.shape[:2]
    rows = (np.arange(height) + 0.5) * label_map.shape[0] // height
    columns = (np.arange(width) + 0.5) * label_map.shape[1] // width
    labels = label_map[rows.astype(np.int64)[:, None], columns.astype(np.int64)].astype(np.int64).clip(max=len(colors))
    paint = np.array([color or (0, 0, 0) for color in colors] + [(255, 255, 255)], np.float32)
    cover = np.array([_OPACITY if color else 0.0 for color in colors] + [_FOG], np.float32)[labels, None]
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    cover = np.where(edge[..., None], np.maximum(cover, 0.9), cover)
    return Image.fromarray((pixels * (1 - cover) + paint[labels] * cover).round().astype(np.uint8))


def contact_sheet(tiles: Sequence[Tile], coding: LabelCoding, columns: int = 4) -> Image.Image:
    """Draw label maps on their images in a grid, with a legend of the classes that occur.

    Args:
        tiles: At least one image with its label map.
        coding: Classes of the label maps.
        columns: Images per row.
    """
    colors = class_colors(coding)
    columns = min(columns, len(tiles))
    pictures = []
    for tile in tiles:
        small = tile.image.copy()
        small.thumbnail((_TILE, _TILE))
        pictures.append(overlay(small, tile.label_map, colors))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) + _LINE + _GAP for row in rows]
    width = columns * (_TILE + _GAP) + _GAP
    seen = sorted({int(index) for tile in tiles for index in np.unique(tile.label_map)})
    legend = _legend(seen, coding, colors, width)
    page = Image.new("RGB", (width, _GAP + sum(heights) + legend.height), _PAPER)
    draw, face, top = ImageDraw.Draw(page), ImageFont.load_default(13), _GAP
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left = _GAP + column * (_TILE + _GAP)
        page.paste(picture, (left, top))
        draw.text((left, top + picture.height + 2), _fitted(tiles[number].title, face), fill=_INK, font=face)
        if column == columns - 1:
            top += heights[row]
    page.paste(legend, (0, page.height - legend.height))
    return page


def _legend(seen: Sequence[int], coding: LabelCoding, colors: Sequence[Color | None], width: int) -> Image.Image:
    """Return a strip with a swatch and a name for each class index that is seen."""
    face = ImageFont.load_default(14)
    known = [index for index in seen if index < len(colors)]
    entries: list[tuple[str, Color | None]] = [(coding.classes[index], colors[index]) for index in known]
    if any(index >= len(colors) for index in seen):
        entries.append(("ignored", (255, 255, 255)))
    cell = min(width - 2 * _GAP, 30 + max((int(face.getlength(name)) for name, _ in entries), default=0) + 2 * _GAP)
    per_row = max(1, (width - 2 * _GAP) // cell)
    strip = Image.new("RGB", (width, math.ceil(len(entries) / per_row) * 26 + _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (name, color) in enumerate(entries):
        row, column = divmod(number, per_row)
        x, y = _GAP + column * cell, row * 26
        draw.rectangle((x, y + 2, x + 22, y + 20), fill=color, outline=_INK)
        draw.text((x + 30, y + 2), _printable(name), fill=_INK, font=face)
    return strip


def _fitted(text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of a text that fits below a tile."""
    text = _printable(text)
    while len(text) > 1 and face.getlength(text) > _TILE:
        text = "…" + text[2:]
    return text


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
