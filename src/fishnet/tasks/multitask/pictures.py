"""Draw the labels of an image on all of its levels: class, boxes, outlines and label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from fishnet.data.levels import ImageLabels, LevelClasses
from fishnet.data.segmentation.overlays import overlay
from fishnet.drawing import style
from fishnet.drawing.regions import Color, class_color, draw_regions, sheet

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
