"""Draw panoptic maps: objects outlined, with their class and a number, stuff in colors, and a legend.

A category has the same color in all images; objects are numbered as in the list of segments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw

from fishnet.data.panoptic import Category, PanopticMap, Segment
from fishnet.drawing import style
from fishnet.drawing.label_maps import (
    canvas,
    class_colors,
    draw_legend,
    outlines,
    paint_label_map,
    resized_nearest,
    stacked,
)

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
    numbers = np.zeros(ids.shape, np.int64)
    for number, segment in enumerate(objects, 1):
        numbers[ids == segment["id"]] = number
    painted[outlines(numbers, max(1, max(picture.size) // 480)) & (numbers > 0)] = _RIM
    drawn = Image.fromarray(painted)
    _write_names(drawn, [numbers == number for number in range(1, len(objects) + 1)], _names(objects, categories))
    return drawn


def category_places(panoptic: PanopticMap, categories: Sequence[Category]) -> np.ndarray:
    """Return the category index of every pixel (H, W); void has the index after the last category."""
    by_id = {category["id"]: place for place, category in enumerate(categories)}
    found = np.full(panoptic.ids.shape, len(categories), np.int64)
    for segment in panoptic.segments:
        found[panoptic.ids == segment["id"]] = by_id[segment["category_id"]]
    return found


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


def _write_names(picture: Image.Image, masks: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Write the label of each object at its center, or above small objects."""
    draw, face = ImageDraw.Draw(picture), style.font(max(10, min(picture.size) // 28))
    for mask, name in reversed(list(zip(masks, names, strict=True))):  # those of the highest scores come first
        rows, columns = np.nonzero(mask)
        if len(rows) < _LEAST:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), name, font=face)
        width, height = int(right - left), int(bottom - top)
        # the pixel of the object that is nearest to its center of mass, which may lie outside of it
        nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
        x, y = int(columns[nearest]) - width // 2, int(rows[nearest]) - height // 2
        if len(rows) < _ROOMY * width * height and (above := int(rows.min()) - height - 4) >= 2:
            y = above
        x = min(max(2, x), max(2, picture.width - width - 3))
        y = min(max(2, y), max(2, picture.height - height - 3))
        draw.rectangle((x - 2, y - 2, x + width + 2, y + height + 2), fill=style.INK)
        draw.text((x - left, y - top), name, fill="white", font=face)
