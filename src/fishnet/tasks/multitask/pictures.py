"""Draw the labels of an image on all of its levels: class, boxes, outlines and label map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.data.levels import ImageLabels, LevelClasses, ObjectLabels
from fishnet.data.multitask.dataset import SampleTarget
from fishnet.data.panoptic import Category, PanopticMap
from fishnet.data.run_lengths import RunLengths, encode
from fishnet.data.segmentation.overlays import overlay
from fishnet.drawing import style
from fishnet.drawing.regions import Color, class_color, draw_regions, sheet
from fishnet.tasks.base import Answer

_LINE = 22
_PAPER = "#ffffff"
_CLEAR = ("background", "void", "unlabeled", "other")


@dataclass
class LabeledImage:
    """Image of a contact sheet."""

    image: Image.Image
    labels: ImageLabels
    title: str


def pixel_colors(classes: LevelClasses) -> list[Color | None]:
    """Return the color of each class of label maps: that of its objects if there are any; None for background."""
    colors: list[Color | None] = []
    for index, name in enumerate(classes.pixel):
        if index == 0 and name.lower() in _CLEAR:
            colors.append(None)
        elif name in classes.region:
            colors.append(class_color(classes.region.index(name)))
        else:
            colors.append(class_color(len(classes.region) + index))
    return colors


def draw_levels(item: LabeledImage, classes: LevelClasses, side: int = 256) -> Image.Image:
    """Draw an image with its objects, beside it the image with its label map, and below its class and name.

    A level without labels is named as unlabeled.

    Args:
        item: Image and labels.
        classes: Class names of each level.
        side: Longer side of each of the two pictures in pixels.
    """
    labels = item.labels
    size = _fitted(item.image.size, side)
    photo = item.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    objects = labels.objects
    left = photo
    if objects is not None:
        corners = objects.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        corners *= size[0] / item.image.width
        found = {"boxes": torch.from_numpy(corners), "labels": objects.classes, "masks": objects.masks}
        left = draw_regions(torch.from_numpy(np.array(photo)).permute(2, 0, 1), found, classes.region, None)
    right = photo if labels.label_map is None else overlay(photo, labels.label_map, pixel_colors(classes))
    number = 0 if objects is None else len(objects.boxes)
    count = "objects unlabeled" if objects is None else f"{number} object{'' if number == 1 else 's'}"
    facts = [
        "class unlabeled" if labels.label is None else f"class {classes.image[labels.label]}",
        count if objects is None or objects.annotated is None else f"{count} of {len(objects.annotated)} categories",
        *(["pixels unlabeled"] if labels.label_map is None else []),
    ]
    card = Image.new("RGB", (2 * size[0] + 4, size[1] + 2 * _LINE), _PAPER)
    card.paste(left, (0, 0))
    card.paste(right, (size[0] + 4, 0))
    draw, face, bold = ImageDraw.Draw(card), style.font(13), style.font(13, bold=True)
    text = style.shorten(", ".join(facts), card.width - 8, bold)
    draw.text((4, size[1] + 2), text, fill=style.INK, font=bold)
    title = style.shorten(item.title, card.width - 8, face)
    draw.text((4, size[1] + _LINE), title, fill=style.MUTED, font=face)
    return card


def level_sheet(items: Sequence[LabeledImage], classes: LevelClasses, columns: int = 3) -> Image.Image:
    """Arrange images with their labels in a grid; see `draw_levels`."""
    return sheet([draw_levels(item, classes) for item in items], min(columns, len(items)))


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size (width, height) with a longer side of `side` pixels."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def draw_panoptic(
    image: Image.Image, panoptic: PanopticMap, categories: Sequence[Category], classes: LevelClasses, side: int = 256
) -> Image.Image:
    """Draw a panoptic map on its image: objects in shades of the color of their class, void as white fog.

    Args:
        image: Image.
        panoptic: Segments of the image.
        categories: Classes of the segments; things are the objects, in the order of their classes.
        classes: Class names of each level.
        side: Longer side of the picture in pixels.
    """
    photo = image.convert("RGB").resize(_fitted(image.size, side), Image.Resampling.BICUBIC)
    things = [one["id"] for one in categories if one["isthing"]]
    of_stuff = dict(zip(classes.pixel, pixel_colors(classes), strict=True))
    names = {one["id"]: one["name"] for one in categories}
    places = np.full(panoptic.ids.shape, len(panoptic.segments))
    colors: list[Color | None] = []
    drawn: Counter[int] = Counter()
    for place, segment in enumerate(panoptic.segments):
        category = segment["category_id"]
        places[panoptic.ids == segment["id"]] = place
        if category in things:
            colors.append(_shade(class_color(things.index(category)), drawn[category]))
            drawn[category] += 1
        else:
            colors.append(of_stuff[names[category]])
    return overlay(photo, places, colors)


def _shade(color: Color, number: int) -> Color:
    """Return a lighter shade of a color for each further object of a class, in turn."""
    share = (0.0, 0.35, 0.6)[number % 3]
    red, green, blue = (round(value + share * (255 - value)) for value in color)
    return red, green, blue


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two pictures beside each other, aligned at the top."""
    page = Image.new("RGB", (left.width + 4 + right.width, max(left.height, right.height)), _PAPER)
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 4, 0))
    return page


def as_object_labels(
    boxes: Tensor | Sequence[Sequence[float]], classes: Tensor | Sequence[int], masks: list[RunLengths] | None = None
) -> ObjectLabels:
    """Return objects with corners x1 y1 x2 y2 as labels, in which boxes are x, y, width, height."""
    corners = np.array(_plain(boxes), np.float64).reshape(-1, 4)
    indices = np.array(_plain(classes), np.int64).reshape(-1)
    corners[:, 2:] -= corners[:, :2]
    return ObjectLabels(indices, corners, np.zeros(len(indices), bool), masks)


def _plain(values: Tensor | Sequence[object]) -> object:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def as_labels(answer: Answer) -> ImageLabels:
    """Return what is predicted for an image as labels to draw: the first class, the objects, the label map."""
    found = ImageLabels()
    if "image" in answer and answer["image"]["indices"]:
        found.label = answer["image"]["indices"][0]
    if "region" in answer:
        one = answer["region"]
        found.objects = as_object_labels(one["boxes"], one["indices"], one.get("masks"))
    if "pixel" in answer:
        found.label_map = answer["pixel"]["label_map"]
    return found


def of_target(target: SampleTarget) -> ImageLabels:
    """Return the target of a training sample as labels to draw."""
    found = ImageLabels()
    if "image" in target:
        found.label = int(target["image"])
    if "region" in target:
        one = target["region"]
        masks = encode(one["masks"].cpu() > 0) if "masks" in one else None
        found.objects = as_object_labels(one["boxes"], one["labels"], masks)
    if "pixel" in target:
        found.label_map = target["pixel"].cpu().numpy()
    return found
