"""Draw boxes, masks and keypoints on images; each class has the same color in all images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.drawing import style
from fishnet.drawing.labels import Box, Label, draw_labels
from fishnet.drawing.masks import paint_masks
from fishnet.errors import counted

Color = tuple[int, int, int]
Found = Mapping[str, Any]
"""Objects of an image, see `draw_regions`."""
MOST = 50
"""Maximum number of objects that are drawn on an image."""
_GAP = 8
_NARROWEST = 240
"""Smaller pictures are enlarged, so that labels and a legend fit."""
_PAPER = "#eef1f5"
_FIRST = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY)


def class_color(index: int) -> Color:
    """Return the color of a class: from the palette of the style, then hues at multiples of the golden angle."""
    if index < len(_FIRST):
        text = _FIRST[index].lstrip("#")
        return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)
    hue = (0.11 + 0.61803398875 * index) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.65 + 0.3 * (index % 3) / 2)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_regions(
    image: Tensor, found: Found, classes: Sequence[str], longest: int | None = 480, note: bool = True
) -> Image.Image:
    """Draw objects on an image, at most 50 (those with the highest scores, or the first ones without scores).

    Args:
        image: Image (3, H, W), uint8 or float in 0..1.
        found: A detection target or detections: `boxes` (N, 4) in pixels of the image and `labels` (N,); optionally
            `scores` (N,), `masks` as tensor (N, H, W) or N run lengths (of any image size), `keypoints` (N, K, 3),
            `outlined` (N,), whose false entries mark masks that are not drawn.
        classes: Class names by label.
        longest: Maximum of the longer side of the picture in pixels, to which small images are enlarged by an integer
            factor; None keeps the size of the image.
        note: Write into the picture how many objects are drawn if it is not all of them.
    """
    pixels, ratio = _canvas(image, longest)
    chosen = _strongest(found)
    if not chosen:
        return Image.fromarray(pixels)
    labels = [int(found["labels"][place]) for place in chosen]
    colors = [class_color(label) for label in labels]
    _paint_masks(pixels, found, chosen, colors)
    picture = Image.fromarray(pixels)
    draw, size = ImageDraw.Draw(picture), max(10, min(picture.size) // 28)
    boxes = np.asarray(found["boxes"], dtype=np.float64).reshape(-1, 4)[chosen] * [*ratio[::-1], *ratio[::-1]]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    corners: list[Box] = [(left, top, right, bottom) for left, top, right, bottom in boxes.tolist()]
    for box, color in reversed(list(zip(corners, colors, strict=True))):  # the highest scores are on top
        draw.rectangle(box, outline=color, width=max(1, max(picture.size) // 240))
    scores = [f"{100 * float(found['scores'][place]):.0f}" if "scores" in found else "" for place in chosen]
    texts = [
        Label(box, classes[label], score, color, _ink_on(color))
        for box, label, score, color in zip(corners, labels, scores, colors, strict=True)
    ]
    draw_labels(draw, texts, picture.size, size)
    if "keypoints" in found and len(found["keypoints"]):
        points = np.asarray(found["keypoints"], dtype=np.float64)[chosen].reshape(-1, 3)
        _draw_keypoints(draw, points * [*ratio[::-1], 1], max(2, size // 5))
    if note and len(chosen) < len(found["labels"]):
        _write_note(draw, count_text(len(found["labels"])), picture.size)
    return picture


def count_text(count: int) -> str:
    """Return the number of objects as text, and how many of them are drawn if it is not all."""
    if count > MOST:
        return f"{MOST} of {count} objects drawn"
    return counted(count, "object")


def _strongest(found: Found) -> list[int]:
    """Return the indices of the objects to draw, the highest score first."""
    order = list(range(len(found["labels"])))
    if "scores" in found:
        order.sort(key=lambda place: -float(found["scores"][place]))
    return order[:MOST]


def _paint_masks(pixels: np.ndarray, found: Found, chosen: list[int], colors: Sequence[Color]) -> None:
    """Draw the masks of the chosen objects that have an outline."""
    masks, outlined = found.get("masks"), found.get("outlined")
    if masks is None or not len(masks):
        return
    shown = [number for number, place in enumerate(chosen) if outlined is None or bool(outlined[place])]
    places = [chosen[number] for number in shown]
    picked = masks[places] if isinstance(masks, Tensor) else [masks[place] for place in places]
    paint_masks(pixels, picked, [colors[number] for number in shown])


def _draw_keypoints(draw: ImageDraw.ImageDraw, points: np.ndarray, radius: int) -> None:
    """Draw the visible points of (N, 3)."""
    for x, y, visible in points.tolist():
        if visible > 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")


def _write_note(draw: ImageDraw.ImageDraw, text: str, size: tuple[int, int]) -> None:
    """Write a line of text in the lower left corner of a picture of width x height."""
    face = style.font(max(11, min(size) // 28))
    text = style.shorten(text, size[0] - 8, face)
    _, top, right, bottom = draw.textbbox((0, 0), text, font=face)
    height = bottom - top
    draw.rectangle((0, size[1] - height - 8, right + 8, size[1]), fill=style.INK)
    draw.text((4, size[1] - height - 4 - top), text, fill="white", font=face)


def _canvas(image: Tensor, longest: int | None) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the image as uint8 (H, W, 3) in the size of the picture, and the scale factors of height and width."""
    if image.is_floating_point():
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = image.permute(1, 2, 0).cpu().contiguous().numpy()
    height, width = pixels.shape[:2]
    if longest is None:
        return pixels.copy(), (1.0, 1.0)
    picture = canvas(Image.fromarray(pixels), longest)
    return np.array(picture), (picture.height / height, picture.width / width)


def canvas(image: Image.Image, longest: int | None) -> Image.Image:
    """Return an image as RGB in the size of its picture: at most `longest` pixels, and enlarged if it is small."""
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


def _ink_on(color: Color) -> str:
    """Return black or white, whichever has more contrast to a color."""
    return "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else "white"


def sheet(tiles: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Arrange pictures of different sizes in a grid."""
    columns = columns or min(4, max(1, math.ceil(math.sqrt(len(tiles)))))
    rows = [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = max((sum(tile.width + _GAP for tile in row) for row in rows), default=0) + _GAP
    page = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for tile in row:
            page.paste(tile, (left, top))
            left += tile.width + _GAP
        top += height + _GAP
    return page
