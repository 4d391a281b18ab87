"""Draw panoptic maps: objects outlined, with their class and a number, stuff in colors, and a legend.

A category has the same color in all images; objects are numbered as in the list of segments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from fishnet.data.panoptic import Category, PanopticMap, Segment
from fishnet.drawing import style
from fishnet.drawing.label_maps import (
    class_colors,
    draw_legend,
    outlines,
    paint_label_map,
    resized_nearest,
    stacked,
)
from fishnet.drawing.labels import Box, free_place
from fishnet.drawing.regions import canvas

_RIM = (255, 255, 255)
_LEAST = 8
"""Objects with fewer pixels in the picture are not labeled."""
_ROOMY = 4
"""The label is placed above objects whose area is less than this multiple of the label's area."""


def draw_panoptic(
    image: Image.Image,
    panoptic: PanopticMap,
    categories: Sequence[Category],
    colors: np.ndarray | None = None,
    clear: Collection[int] = (),
    longest: int | None = None,
) -> Image.Image:
    """Draw a panoptic map on its image, with a legend of the categories that occur; small images are enlarged.

    Args:
        image: Image of any size and mode.
        panoptic: Segments of the image; ids (H, W) are resized to the picture (nearest).
        categories: All classes of the data set or model; their order determines the colors.
        colors: Color of each category, uint8 (categories, 3); None: distinct default colors.
        clear: Indices in `categories` of those that are not painted, such as the background.
        longest: Maximum of the longer side of the picture in pixels; None keeps the size of the image.
    """
    colors = class_colors(len(categories)) if colors is None else colors
    picture = paint_panoptic(canvas(image, longest), panoptic, categories, colors, clear)
    seen = np.unique(category_places(panoptic, categories)).tolist()
    names = [category["name"] for category in categories]
    return stacked(picture, draw_legend(seen, names, colors, picture.width, clear, "void"))


def paint_panoptic(
    picture: Image.Image,
    panoptic: PanopticMap,
    categories: Sequence[Category],
    colors: np.ndarray,
    clear: Collection[int] = (),
) -> Image.Image:
    """Draw a panoptic map on a picture, whose size is kept, without a legend; for the arguments see `draw_panoptic`."""
    height, width = picture.height, picture.width
    places = category_places(panoptic, categories)
    painted = np.asarray(paint_label_map(picture, places, colors, clear=clear)).copy()
    ids = resized_nearest(panoptic.ids, height, width)
    things = {category["id"] for category in categories if category["isthing"]}
    objects = [one for one in panoptic.segments if one["category_id"] in things]
    numbers = _looked_up(ids, {segment["id"]: number for number, segment in enumerate(objects, 1)}, 0)
    painted[outlines(numbers, max(1, max(picture.size) // 480)) & (numbers > 0)] = _RIM
    drawn = Image.fromarray(painted)
    _write_names(drawn, _pixels_of(numbers, len(objects)), _names(objects, categories))
    return drawn


def category_places(panoptic: PanopticMap, categories: Sequence[Category]) -> np.ndarray:
    """Return the category index of every pixel (H, W); void has the index after the last category."""
    by_id = {category["id"]: place for place, category in enumerate(categories)}
    places = {segment["id"]: by_id[segment["category_id"]] for segment in panoptic.segments}
    return _looked_up(panoptic.ids, places, len(categories))


def _looked_up(ids: np.ndarray, values: Mapping[int, int], default: int) -> np.ndarray:
    """Return the value of the id of each pixel, int64 (H, W)."""
    seen, inverse = np.unique(ids, return_inverse=True)
    found = np.array([values.get(one, default) for one in seen.tolist()], np.int64)
    return found[inverse].reshape(ids.shape)


def _pixels_of(numbers: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rows and columns of the pixels of objects 1 to count."""
    rows, columns = np.nonzero(numbers)
    order = np.argsort(numbers[rows, columns], kind="stable")
    ends = np.searchsorted(numbers[rows, columns][order], np.arange(1, count + 2))
    return [(rows[order[begin:end]], columns[order[begin:end]]) for begin, end in pairwise(ends.tolist())]


def _names(objects: Sequence[Segment], categories: Sequence[Category]) -> list[str]:
    """Return the label of each object: its class and number within the class; crowds are labeled as such."""
    by_id = {category["id"]: category["name"] for category in categories}
    counts: Counter[int] = Counter()
    found = []
    for segment in objects:
        counts[segment["category_id"]] += 1
        number = "crowd" if segment["iscrowd"] else f"#{counts[segment['category_id']]}"
        found.append(f"{style.middle(by_id[segment['category_id']], 24)} {number}")
    return found


def _write_names(picture: Image.Image, pixels: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> None:
    """Write the label of each object, given its rows and columns, at its center, or above small objects.

    Labels are moved by a few lines if those of objects with higher scores, which come first, are in the way.
    """
    draw, face = ImageDraw.Draw(picture), style.font(max(10, min(picture.size) // 28))
    placed: list[Box] = []
    written: list[tuple[str, Box, tuple[float, float]]] = []
    for (rows, columns), name in zip(pixels, names, strict=True):
        if len(rows) < _LEAST:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), name, font=face)
        width, height = int(right - left), int(bottom - top)
        # the pixel of the object that is nearest to its center of mass, which may lie outside of it
        nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
        x, y = int(columns[nearest]) - width // 2 - 2, int(rows[nearest]) - height // 2 - 2
        if len(rows) < _ROOMY * width * height and (above := int(rows.min()) - height - 6) >= 0:
            y = above
        lines = (0, -1, 1, -2, 2, -3, 3)
        corners = [(x + shift * width // 2, y + line * (height + 6)) for line in lines for shift in (0, -1, 1)]
        placed.append(free_place(corners, (width + 4, height + 4), picture.size, placed))
        written.append((name, placed[-1], (2 - left, 2 - top)))
    for name, area, offset in reversed(written):
        draw.rectangle(area, fill=style.INK)
        draw.text((area[0] + offset[0], area[1] + offset[1]), name, fill="white", font=face)
