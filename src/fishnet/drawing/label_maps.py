"""Draw label maps on images: a color per class, outlines of the regions, and a legend with class names.

The palette of a data set is used if there is one. Otherwise the first colors are those of boxes and masks
(`fishnet.drawing.regions`), and each further color is as far as possible from all before, so that the color of a class
does not depend on the number of classes. Ignored pixels are hatched in gray, and the background is not painted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.drawing import style
from fishnet.drawing.regions import Color, canvas, class_color, sheet
from fishnet.drawing.sheets import titled_row

LabelMap = np.ndarray | Tensor
_OPACITY, _EDGE_OPACITY = 0.55, 0.95
_HATCH = ((118, 124, 130), (196, 200, 204))
_HATCH_WIDTH = 4
_GAP, _SWATCH, _ROW, _CAPTION = 8, 16, 24, 22
_TWO_COLUMNS = 360
"""Legends of at least this width have two columns even if names must be shortened."""
_PAPER = "#eef1f5"
_FIRST = 6
_LEAST_CHROMA = 60
"""Minimum difference between the channels of a color, since gray marks ignored pixels."""
_LUMA = (55, 225)
"""Range of brightness of the colors."""
_CLEAR = ("background", "void", "unlabeled", "other")
_TILE = 320


class LabeledPhoto(NamedTuple):
    """Image of a contact sheet."""

    image: Image.Image
    label_map: LabelMap
    """Class indices (H, W)."""
    title: str


def background_of(classes: Sequence[str]) -> frozenset[int]:
    """Return the index of the class that is not painted: the first one, if it is named background, void, unlabeled or
    other; else no index."""
    return frozenset({0} if classes and classes[0].strip().lower() in _CLEAR else ())


def class_colors(count: int, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Return the colors of classes, uint8 (count, 3).

    Args:
        count: Number of classes.
        palette: Colors of the data set; further classes get distinct colors.
    """
    own = [(int(color[0]), int(color[1]), int(color[2])) for color in list(palette or [])[:count]]
    return np.array([*own, *_distinct(count)[len(own) :]], np.uint8).reshape(count, 3)


@lru_cache(maxsize=8)
def _distinct(count: int) -> tuple[Color, ...]:
    """Return the first colors of the palette; a larger count has the same ones and more."""
    found = [class_color(index) for index in range(min(count, _FIRST))]
    levels = np.array([0, 51, 102, 153, 204, 255])
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    luma = candidates @ np.array([0.299, 0.587, 0.114])
    usable = (np.ptp(candidates, axis=1) >= _LEAST_CHROMA) & (luma > _LUMA[0]) & (luma < _LUMA[1])
    candidates = candidates[usable]
    nearest = np.full(len(candidates), np.inf)
    for color in found:
        nearest = np.minimum(nearest, _distances(candidates, np.array(color)))
    while len(found) < count:
        if nearest.max() < 1:  # all candidates are used: hues at multiples of the golden angle
            found.append(class_color(len(found)))
            continue
        best = int(nearest.argmax())
        red, green, blue = candidates[best].tolist()
        found.append((red, green, blue))
        nearest = np.minimum(nearest, _distances(candidates, candidates[best]))
    return tuple(found)


def _distances(colors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the perceived distance of sRGB colors (N, 3) to another, by https://www.compuphase.com/cmetric.htm."""
    red = (colors[:, 0] + other[0]) / 512
    weights = np.stack([2 + red, np.full_like(red, 4), 3 - red], 1)
    return np.sqrt((weights * (colors - other) ** 2).sum(1))


def draw_label_map(
    image: Image.Image,
    label_map: LabelMap,
    colors: np.ndarray,
    opacity: float = _OPACITY,
    longest: int | None = None,
    clear: Collection[int] = (),
) -> Image.Image:
    """Draw a label map on its image, with the outlines of its regions; small images are enlarged.

    Args:
        image: Image of any size and mode.
        label_map: Class indices (H, W), resized to the picture (nearest); indices that are no class are ignored pixels.
        colors: Color of each class, uint8 (classes, 3).
        opacity: Opacity of the regions, from 0 to 1.
        longest: Maximum of the longer side of the picture in pixels; None keeps the size of the image.
        clear: Classes whose regions are outlined, but not painted.
    """
    return paint_label_map(canvas(image, longest), label_map, colors, opacity, clear)


def paint_label_map(
    picture: Image.Image,
    label_map: LabelMap,
    colors: np.ndarray,
    opacity: float = _OPACITY,
    clear: Collection[int] = (),
) -> Image.Image:
    """Draw a label map on a picture, whose size is kept; for the arguments see `draw_label_map`."""
    labels = _resized(label_map, picture.height, picture.width, len(colors))
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    paint = np.concatenate([colors, np.zeros((1, 3), colors.dtype)])[labels].astype(np.float32)
    ignored = labels == len(colors)
    if ignored.any():
        paint[ignored] = _hatching(picture.height, picture.width)[ignored]
    cover = np.full(labels.shape, opacity, np.float32)
    cover[np.isin(labels, list(clear))] = 0
    edge = outlines(labels, max(1, max(picture.size) // 640))
    cover[edge & (cover > 0)] = _EDGE_OPACITY
    mixed = pixels + (paint - pixels) * cover[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def _resized(label_map: LabelMap, height: int, width: int, classes: int) -> np.ndarray:
    """Return class indices in the size of a picture; ignored pixels have the index after the last class."""
    values = resized_nearest(label_map, height, width).astype(np.int64)
    return np.where((values < 0) | (values >= classes), classes, values)


def resized_nearest(label_map: LabelMap, height: int, width: int) -> np.ndarray:
    """Return a label map in another size; every pixel takes the value at its center."""
    values = label_map.cpu().numpy() if isinstance(label_map, Tensor) else np.asarray(label_map)
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.intp)
    return values[rows[:, None], columns]


def _hatching(height: int, width: int) -> np.ndarray:
    """Return diagonal gray stripes, uint8 (height, width, 3)."""
    stripes = (np.arange(height)[:, None] + np.arange(width)) // _HATCH_WIDTH % 2
    return np.array(_HATCH, np.uint8)[stripes]


def outlines(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Return the pixels (H, W) next to another region, at most `thickness` pixels away."""
    edge = np.zeros(labels.shape, bool)
    for shift in range(1, thickness + 1):
        down, right = labels[shift:] != labels[:-shift], labels[:, shift:] != labels[:, :-shift]
        edge[shift:] |= down
        edge[:-shift] |= down
        edge[:, shift:] |= right
        edge[:, :-shift] |= right
    return edge


def draw_legend(
    seen: Iterable[int],
    classes: Sequence[str],
    colors: np.ndarray,
    width: int,
    clear: Collection[int] = (),
    ignored: str = "ignored",
) -> Image.Image:
    """Return a strip with a swatch and the name of every class, in columns; names that do not fit are shortened.

    Args:
        seen: Class indices to list; indices that are not classes mean ignored pixels.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
        width: Width of the strip in pixels.
        clear: Classes that are not painted; their swatches are white.
        ignored: Label of ignored pixels.
    """
    indices = sorted({int(index) if 0 <= int(index) < len(classes) else len(classes) for index in seen})
    names = [classes[index] if index < len(classes) else ignored for index in indices]
    face = style.font(13)
    room = max(1, width - 2 * _GAP)
    widest = max((face.getlength(style.printable(name)) for name in names), default=0)
    cell = min(room, _SWATCH + 6 + math.ceil(widest) + 14)
    if cell > room // 2 and room >= _TWO_COLUMNS:
        cell = room // 2  # a very long name should not force a single column
    per_row = max(1, room // cell)
    strip = Image.new("RGB", (width, math.ceil(len(names) / per_row) * _ROW + (_GAP if names else 0)), _PAPER)
    draw = ImageDraw.Draw(strip)
    hatching = Image.fromarray(_hatching(_SWATCH, _SWATCH))
    for number, (index, name) in enumerate(zip(indices, names, strict=True)):
        x, y = _GAP + number % per_row * cell, _GAP // 2 + number // per_row * _ROW
        box = (x, y + 2, x + _SWATCH, y + 2 + _SWATCH)
        if index < len(classes):
            red, green, blue = colors[index].tolist()
            draw.rectangle(box, fill=(255, 255, 255) if index in clear else (red, green, blue))
        else:
            strip.paste(hatching, box[:2])
        draw.rectangle(box, outline=style.MUTED)
        text = style.shorten(name, cell - _SWATCH - 6 - 8, face)
        draw.text((x + _SWATCH + 6, y + 2), text, fill=style.INK, font=face)
    return strip


def with_legend(
    picture: Image.Image,
    label_maps: Iterable[LabelMap],
    classes: Sequence[str],
    colors: np.ndarray,
    clear: Collection[int] = (),
) -> Image.Image:
    """Return a picture with the legend of the classes in label maps below it.

    Args:
        picture: Result of `draw_label_map`, or several of them side by side.
        label_maps: Label maps whose classes are listed.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
        clear: Classes that are not painted.
    """
    seen: set[int] = set()
    for one in label_maps:
        seen |= set(np.unique(one.cpu().numpy() if isinstance(one, Tensor) else one).tolist())
    return stacked(picture, draw_legend(seen, classes, colors, picture.width, clear))


def stacked(picture: Image.Image, below: Image.Image) -> Image.Image:
    """Return a picture with another one below it."""
    page = Image.new("RGB", (max(picture.width, below.width), picture.height + below.height), _PAPER)
    page.paste(picture, (0, 0))
    page.paste(below, (0, picture.height))
    return page


def draw_row(
    image: Image.Image,
    maps: Sequence[tuple[str, LabelMap]],
    classes: Sequence[str],
    colors: np.ndarray,
    longest: int = 480,
    clear: Collection[int] = (),
) -> Image.Image:
    """Draw an image beside its label maps, such as ground truth and prediction, with a common legend.

    Args:
        image: Image.
        maps: Title and label map (H, W) of each picture, such as `("truth", ...)`.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
        longest: Maximum of the longer side of each picture in pixels.
        clear: Classes that are not painted.
    """
    pictures = [("image", canvas(image, longest))]
    pictures += [(title, draw_label_map(image, one, colors, longest=longest, clear=clear)) for title, one in maps]
    page = titled_row(pictures)
    return with_legend(page, [one for _, one in maps], classes, colors, clear)


def label_map_sheet(
    photos: Sequence[LabeledPhoto], classes: Sequence[str], colors: np.ndarray, columns: int = 4
) -> Image.Image:
    """Draw label maps on their images in a grid, with the names of the files and a legend of the classes that occur.

    Args:
        photos: Images with their label maps, at least one.
        classes: Class names; see `background_of` for the one that is not painted.
        colors: Color of each class, uint8 (classes, 3).
        columns: Images per row.
    """
    clear, face, cards = background_of(classes), style.font(13), []
    for photo in photos:
        picture = draw_label_map(photo.image, photo.label_map, colors, longest=_TILE, clear=clear)
        card = Image.new("RGB", (_TILE, picture.height + _CAPTION), _PAPER)
        card.paste(picture, (0, 0))
        title = style.shorten(photo.title, _TILE, face)
        ImageDraw.Draw(card).text((0, picture.height + 3), title, fill=style.INK, font=face)
        cards.append(card)
    page = sheet(cards, min(columns, len(cards)))
    return with_legend(page, [photo.label_map for photo in photos], classes, colors, clear)
