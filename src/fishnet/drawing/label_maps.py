"""Draw label maps on images: a color per class, outlines of the regions, and a legend with class names.

The palette of a data set is used where it has one. Otherwise the first colors are those of boxes and masks
(`fishnet.drawing.regions`), and the others are chosen one by one as far as possible from all before in CIELAB, so that
every class keeps its color, whatever the number of classes. Ignored pixels are hatched in gray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.drawing import style
from fishnet.drawing.regions import Color, class_color

LabelMap = np.ndarray | Tensor
_OPACITY, _EDGE_OPACITY = 0.55, 0.95
_HATCH = ((118, 124, 130), (196, 200, 204))
_HATCH_WIDTH = 4
_NARROWEST = 240
"""Smaller pictures are enlarged, so that a legend fits below."""
_GAP, _SWATCH, _ROW, _CAPTION = 8, 16, 24, 22
_PAPER = "#eef1f5"
_FIRST = 6
_GRAY_COST = 12.0
"""Least distance of a color to the grays, which mark ignored pixels."""


def class_colors(count: int, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Return the colors of classes, uint8 (count, 3).

    Args:
        count: Number of classes.
        palette: Colors of the data set; classes beyond its end get colors of their own.
    """
    own = [(int(color[0]), int(color[1]), int(color[2])) for color in list(palette or [])[:count]]
    return np.array([*own, *_distinct(count)[len(own) :]], np.uint8).reshape(count, 3)


@lru_cache(maxsize=8)
def _distinct(count: int) -> tuple[Color, ...]:
    """Return the first colors of the palette; a larger count has the same ones and more."""
    found = [class_color(index) for index in range(min(count, _FIRST))]
    levels = np.array([0, 51, 102, 153, 204, 255])
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = _lab(candidates)
    usable = (np.hypot(places[:, 1], places[:, 2]) > _GRAY_COST) & (places[:, 0] > 20) & (places[:, 0] < 93)
    candidates, places = candidates[usable], places[usable]
    nearest = np.full(len(candidates), np.inf)
    for color in found:
        nearest = np.minimum(nearest, np.linalg.norm(places - _lab(np.array(color)), axis=1))
    while len(found) < count:
        if nearest.max() < 1:  # all candidates are taken: hues that are the golden angle apart
            found.append(class_color(len(found)))
            continue
        best = int(nearest.argmax())
        red, green, blue = candidates[best].tolist()
        found.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1))
    return tuple(found)


def _lab(colors: np.ndarray) -> np.ndarray:
    """Return sRGB colors (..., 3) of 0..255 in CIELAB (D65)."""
    share = colors / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    mixed = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.moveaxis(np.cbrt(mixed / np.array([0.9505, 1.0, 1.089])), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def draw_label_map(
    image: Image.Image,
    label_map: LabelMap,
    colors: np.ndarray,
    opacity: float = _OPACITY,
    longest: int | None = None,
) -> Image.Image:
    """Draw a label map on its image, with the outlines of its regions.

    Args:
        image: Image of any size and mode.
        label_map: Class indices (H, W), resized to the picture (nearest); indices that are no class are ignored pixels.
        colors: Color of each class, uint8 (classes, 3).
        opacity: Opacity of the regions, from 0 to 1.
        longest: Maximum of the longer side of the picture in pixels; None keeps the size of the image.
    """
    picture = _canvas(image, longest)
    labels = _resized(label_map, picture.height, picture.width, len(colors))
    pixels = np.asarray(picture, dtype=np.float32)
    paint = np.concatenate([colors, np.zeros((1, 3), colors.dtype)])[labels].astype(np.float32)
    ignored = labels == len(colors)
    if ignored.any():
        paint[ignored] = _hatching(picture.height, picture.width)[ignored]
    cover = np.full(labels.shape, opacity, np.float32)
    cover[_outlines(labels, max(1, max(picture.size) // 640))] = _EDGE_OPACITY
    mixed = pixels + (paint - pixels) * cover[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def _canvas(image: Image.Image, longest: int | None) -> Image.Image:
    """Return an image as RGB in the size of the picture."""
    image = image.convert("RGB")
    if longest is not None and max(image.size) > longest:
        factor = longest / max(image.size)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
    if image.width < _NARROWEST:
        times = math.ceil(_NARROWEST / image.width)
        if longest is None or max(image.size) * times <= longest:
            image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return image


def _resized(label_map: LabelMap, height: int, width: int, classes: int) -> np.ndarray:
    """Return class indices of the size of a picture; what is no class has the index that follows the classes."""
    values = label_map.cpu().numpy() if isinstance(label_map, Tensor) else np.asarray(label_map)
    rows = ((np.arange(height) + 0.5) * (values.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (values.shape[1] / width)).astype(np.intp)
    values = values[rows[:, None], columns].astype(np.int64)
    return np.where((values < 0) | (values >= classes), classes, values)


def _hatching(height: int, width: int) -> np.ndarray:
    """Return diagonal gray stripes, uint8 (height, width, 3)."""
    stripes = (np.arange(height)[:, None] + np.arange(width)) // _HATCH_WIDTH % 2
    return np.array(_HATCH, np.uint8)[stripes]


def _outlines(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Return the pixels (H, W) next to another region, at most `thickness` pixels away."""
    edge = np.zeros(labels.shape, bool)
    for shift in range(1, thickness + 1):
        down, right = labels[shift:] != labels[:-shift], labels[:, shift:] != labels[:, :-shift]
        edge[shift:] |= down
        edge[:-shift] |= down
        edge[:, shift:] |= right
        edge[:, :-shift] |= right
    return edge


def draw_legend(seen: Iterable[int], classes: Sequence[str], colors: np.ndarray, width: int) -> Image.Image:
    """Return a strip with a swatch and the name of every class, in columns; names that do not fit are shortened.

    Args:
        seen: Class indices to list; others than those of classes stand for ignored pixels.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
        width: Width of the strip in pixels.
    """
    indices = sorted({int(index) if 0 <= int(index) < len(classes) else len(classes) for index in seen})
    names = [classes[index] if index < len(classes) else "ignored" for index in indices]
    face = style.font(13)
    room = max(1, width - 2 * _GAP)
    widest = max((face.getlength(style.printable(name)) for name in names), default=0)
    cell = min(room, _SWATCH + 6 + math.ceil(widest) + 14)
    if cell > room // 2 and room >= 2 * _NARROWEST // 3 and len(names) > 1:
        cell = room // 2  # one very long name should not take a line for each
    per_row = max(1, room // cell)
    strip = Image.new("RGB", (width, math.ceil(len(names) / per_row) * _ROW + (_GAP if names else 0)), _PAPER)
    draw = ImageDraw.Draw(strip)
    hatching = Image.fromarray(_hatching(_SWATCH, _SWATCH))
    for number, (index, name) in enumerate(zip(indices, names, strict=True)):
        x, y = _GAP + number % per_row * cell, _GAP // 2 + number // per_row * _ROW
        box = (x, y + 2, x + _SWATCH, y + 2 + _SWATCH)
        if index < len(classes):
            red, green, blue = colors[index].tolist()
            draw.rectangle(box, fill=(red, green, blue))
        else:
            strip.paste(hatching, box[:2])
        draw.rectangle(box, outline=style.MUTED)
        text = style.shorten(name, cell - _SWATCH - 6 - 8, face)
        draw.text((x + _SWATCH + 6, y + 2), text, fill=style.INK, font=face)
    return strip


def with_legend(
    picture: Image.Image, label_maps: Iterable[LabelMap], classes: Sequence[str], colors: np.ndarray
) -> Image.Image:
    """Return a picture with the legend of the classes in label maps below it.

    Args:
        picture: What `draw_label_map` returned, or several of them beside each other.
        label_maps: Label maps whose classes are listed.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
    """
    seen: set[int] = set()
    for one in label_maps:
        seen |= set(np.unique(one.cpu().numpy() if isinstance(one, Tensor) else one).tolist())
    legend = draw_legend(seen, classes, colors, picture.width)
    page = Image.new("RGB", (picture.width, picture.height + legend.height), _PAPER)
    page.paste(picture, (0, 0))
    page.paste(legend, (0, picture.height))
    return page


def draw_row(
    image: Image.Image,
    maps: Sequence[tuple[str, LabelMap]],
    classes: Sequence[str],
    colors: np.ndarray,
    longest: int = 480,
) -> Image.Image:
    """Draw an image beside its label maps, such as truth and prediction, with a common legend.

    Args:
        image: Image.
        maps: Title and label map (H, W) of each picture, such as `("truth", ...)`.
        classes: Class names.
        colors: Color of each class, uint8 (classes, 3).
        longest: Maximum of the longer side of each picture in pixels.
    """
    pictures = [("image", _canvas(image, longest))]
    pictures += [(title, draw_label_map(image, one, colors, longest=longest)) for title, one in maps]
    width, height = pictures[0][1].size
    page = Image.new("RGB", (len(pictures) * (width + _GAP) + _GAP, height + _CAPTION), _PAPER)
    draw, face = ImageDraw.Draw(page), style.font(13)
    for number, (title, picture) in enumerate(pictures):
        left = _GAP + number * (width + _GAP)
        draw.text((left, 3), style.shorten(title, width, face), fill=style.INK, font=face)
        page.paste(picture, (left, _CAPTION))
    return with_legend(page, [one for _, one in maps], classes, colors)
