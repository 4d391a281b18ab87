"""Drawing of the labels of an image on all levels: class, boxes, outlines, label map and panoptic map."""

from __future__ import annotations

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
from fishnet.drawing import style
from fishnet.drawing.label_maps import background_of, paint_label_map, with_legend
from fishnet.drawing.panoptic import paint_panoptic
from fishnet.drawing.regions import class_color, count_text, draw_regions, sheet
from fishnet.files import Json
from fishnet.tasks.base import Answer

_LINE, _GAP = 22, 4
_PAPER = "#ffffff"


@dataclass
class LabeledImage:
    """Image of a contact sheet."""

    image: Image.Image
    labels: ImageLabels
    title: str
    panoptic: PanopticMap | None = None


@dataclass
class LevelColors:
    """Class names and colors of a network or a data set."""

    classes: LevelClasses
    categories: Sequence[Category] = ()
    """Classes of panoptic maps; empty: there are none."""

    @property
    def pixel(self) -> np.ndarray:
        """Color of each class of label maps, uint8 (classes, 3): that of its objects if there are any."""
        objects = self.classes.region
        places = [
            objects.index(name) if name in objects else len(objects) + index
            for index, name in enumerate(self.classes.pixel)
        ]
        return np.array([class_color(place) for place in places], np.uint8).reshape(-1, 3)

    @property
    def clear(self) -> frozenset[int]:
        """Classes of label maps that are not painted."""
        return background_of(self.classes.pixel)

    @property
    def panoptic(self) -> np.ndarray:
        """Color of each category of panoptic maps, uint8 (categories, 3): that of its boxes or of its label maps."""
        of_pixel = dict(zip(self.classes.pixel, self.pixel, strict=True))
        things = iter(range(len(self.categories)))
        rows = [class_color(next(things)) if one["isthing"] else of_pixel[one["name"]] for one in self.categories]
        return np.array(rows, np.uint8).reshape(-1, 3)

    @property
    def clear_categories(self) -> list[int]:
        """Indices of the categories that are not painted."""
        names = [self.classes.pixel[index] for index in self.clear]
        return [place for place, one in enumerate(self.categories) if not one["isthing"] and one["name"] in names]


def draw_levels(item: LabeledImage, colors: LevelColors, side: int = 256) -> Image.Image:
    """Draw an image side by side with its objects, its label map and its panoptic map, and its class and name below.

    Levels without labels are marked as unlabeled. The panoptic map is omitted if there are none.

    Args:
        item: Image and labels.
        colors: Class names of each level, and their colors.
        side: Longer side of each of the pictures in pixels.
    """
    labels, classes = item.labels, colors.classes
    size = _fitted(item.image.size, side)
    photo = item.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    panels = [_with_objects(photo, labels.objects, classes, size[0] / item.image.width)]
    pixels = labels.label_map
    panels.append(photo if pixels is None else paint_label_map(photo, pixels, colors.pixel, clear=colors.clear))
    if item.panoptic is not None:
        clear = colors.clear_categories
        panels.append(paint_panoptic(photo, item.panoptic, colors.categories, colors.panoptic, clear))
    elif colors.categories:
        panels.append(photo)
    card = Image.new("RGB", (len(panels) * (size[0] + _GAP) - _GAP, size[1] + 2 * _LINE), _PAPER)
    for place, panel in enumerate(panels):
        card.paste(panel, (place * (size[0] + _GAP), 0))
    draw, face, bold = ImageDraw.Draw(card), style.font(13), style.font(13, bold=True)
    facts = _facts(labels, classes)
    if colors.categories and item.panoptic is None:
        facts.append("no panoptic map")
    text = style.shorten(", ".join(facts), card.width - 8, bold)
    draw.text((4, size[1] + 2), text, fill=style.INK, font=bold)
    title = style.shorten(item.title, card.width - 8, face)
    draw.text((4, size[1] + _LINE), title, fill=style.MUTED, font=face)
    return card


def _with_objects(photo: Image.Image, objects: ObjectLabels | None, classes: LevelClasses, scale: float) -> Image.Image:
    if objects is None:
        return photo
    corners = objects.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    corners *= scale
    found: Json = {"boxes": torch.from_numpy(corners), "labels": objects.classes, "masks": objects.masks}
    found["outlined"] = objects.outlined
    return draw_regions(torch.from_numpy(np.array(photo)).permute(2, 0, 1), found, classes.region, None, note=False)


def _facts(labels: ImageLabels, classes: LevelClasses) -> list[str]:
    """Return captions that describe the labels of an image."""
    objects = labels.objects
    number = 0 if objects is None else len(objects.boxes)
    count = "objects unlabeled" if objects is None else count_text(number)
    return [
        "class unlabeled" if labels.label is None else f"class {classes.image[labels.label]}",
        count if objects is None or objects.annotated is None else f"{count} of {len(objects.annotated)} categories",
        *(["pixels unlabeled"] if labels.label_map is None else []),
    ]


def level_sheet(items: Sequence[LabeledImage], colors: LevelColors, columns: int = 3) -> Image.Image:
    """Arrange images with their labels in a grid, with a legend of the label maps; see `draw_levels`."""
    page = sheet([draw_levels(item, colors) for item in items], min(columns, len(items)))
    return with_level_legend(page, items, colors)


def with_level_legend(picture: Image.Image, items: Sequence[LabeledImage], colors: LevelColors) -> Image.Image:
    """Return a picture with a legend of the classes in the label maps of images below it."""
    maps = [item.labels.label_map for item in items if item.labels.label_map is not None]
    return with_legend(picture, maps, colors.classes.pixel, colors.pixel, colors.clear) if maps else picture


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size (width, height) with a longer side of `side` pixels."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


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
    """Return the prediction for an image as labels to draw: the most probable class, the objects, the label map."""
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
        if "outlined" in one:
            found.objects.outlined = one["outlined"].cpu().numpy()
    if "pixel" in target:
        found.label_map = target["pixel"].cpu().numpy()
    return found
