"""Pictures of training batches and of predictions for whole images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.config import NormalizeConfig
from fishnet.drawing import style
from fishnet.errors import FishnetError

MOST_IMAGES = 32
_TILE = 160
_GAP = 8
_LINE = 20
_TITLE = 22
_PAPER = "#eef1f5"


def draw_batch(images: Tensor, captions: Sequence[str], preprocess: NormalizeConfig) -> Image.Image:
    """Draw a batch of network inputs with a caption below each image; at most 32 images.

    Args:
        images: Normalized images (N, C, H, W); with more than 3 channels the first three are drawn, with 2 the first.
        captions: Caption of each image.
        preprocess: Mean and standard deviation of the normalization, which is undone.

    Raises:
        FishnetError: There are no images, or the number of captions differs.
    """
    if images.ndim != 4 or not len(images) or len(images) != len(captions):
        raise FishnetError(f"cannot draw a batch of shape {tuple(images.shape)} with {len(captions)} captions")
    tiles = [as_image(image, preprocess) for image in images[:MOST_IMAGES]]
    width, height = tiles[0].size
    columns = min(len(tiles), 8 if len(tiles) > 12 else 4)
    rows = math.ceil(len(tiles) / columns)
    face = style.font(13)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _LINE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=False)):
        x = _GAP + (number % columns) * (width + _GAP)
        y = _GAP + (number // columns) * (height + _LINE + _GAP)
        sheet.paste(tile, (x, y))
        draw.text((x, y + height + 2), style.shorten(caption, width, face), fill=style.INK, font=face)
    return sheet


def titled_row(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Arrange pictures of one size side by side, each below its title."""
    width, height = pictures[0][1].size
    page = Image.new("RGB", (len(pictures) * (width + _GAP) + _GAP, height + _TITLE), _PAPER)
    draw, face = ImageDraw.Draw(page), style.font(13)
    for number, (title, picture) in enumerate(pictures):
        left = _GAP + number * (width + _GAP)
        draw.text((left, 3), style.shorten(title, width, face), fill=style.INK, font=face)
        page.paste(picture, (left, _TITLE))
    return page


class Card(TypedDict):
    """Image of a contact sheet."""

    image: Image.Image
    title: str
    lines: Sequence[tuple[str, float]]
    """Labels and scores in 0..1, sorted by score."""
    target: NotRequired[str | Sequence[str] | None]
    """True label, or labels, if they are known."""


def contact_sheet(entries: Iterable[Card], columns: int = 4) -> Image.Image:
    """Draw predictions as a grid of cards: the image, its name, and each label with its score.

    Args:
        entries: A card per image. With a target its border is green if the best label is correct; otherwise it is red
            and the target is written below.
        columns: Number of cards per row.

    Raises:
        FishnetError: There are no entries.
    """
    entries = list(entries)
    if not entries:
        raise FishnetError("there are no images to put on a contact sheet")
    columns = max(1, min(columns, len(entries)))
    lines = max(len(entry["lines"]) for entry in entries)
    extra = any(entry.get("target") is not None for entry in entries)
    size = (_CARD, _PHOTO + 34 + lines * _ROW + (_ROW if extra else 0) + 8)
    rows = math.ceil(len(entries) / columns)
    step = size[0] + 12, size[1] + 12
    sheet = Image.new("RGB", (columns * step[0] + 12, rows * step[1] + 12), _PAPER)
    for number, entry in enumerate(entries):
        corner = 12 + (number % columns) * step[0], 12 + (number // columns) * step[1]
        sheet.paste(_card(entry, size), corner)
    return sheet


_CARD = 270
_PHOTO = 200
_ROW = 22


def _card(entry: Card, size: tuple[int, int]) -> Image.Image:
    card = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(card)
    draw.rectangle((8, 8, _CARD - 9, _PHOTO - 1), fill=_PAPER)
    photo = _fit(entry["image"], _CARD - 16, _PHOTO - 8)
    card.paste(photo, ((_CARD - photo.width) // 2, 8 + (_PHOTO - 8 - photo.height) // 2))
    targets = _targets(entry.get("target"))
    lines = list(entry["lines"])
    right = bool(lines) and lines[0][0] in targets
    edge = style.RULE if not targets else style.GREEN if right else style.VERMILION
    bold, face = style.font(14, bold=True), style.font(13)
    draw.text((10, _PHOTO + 7), style.shorten(entry["title"], _CARD - 20, bold), fill=style.INK, font=bold)
    y = _PHOTO + 30
    for label, score in lines:
        _score_line(draw, y, str(label), float(score), style.GREEN if label in targets else style.SKY)
        y += _ROW
    if targets and not right:
        text = style.shorten(f"true: {', '.join(targets)}", _CARD - 20, face)
        draw.text((10, y + 2), text, fill=style.VERMILION, font=face)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=edge, width=3 if targets else 1)
    return card


def _score_line(draw: ImageDraw.ImageDraw, y: int, label: str, score: float, color: str) -> None:
    """Draw a label on the left, its score on the right, and a bar of proportional length below."""
    face = style.font(13)
    share = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
    value = f"{100 * score:.1f} %"
    width = _CARD - 20
    draw.rectangle((10, y + 17, 10 + width, y + 19), fill="#e9edf1")
    if share > 0:
        draw.rectangle((10, y + 17, 10 + round(width * share), y + 19), fill=color)
    room = width - face.getlength(value) - 8
    draw.text((10, y), style.shorten(label, room, face), fill=style.INK, font=face)
    draw.text((10 + width - face.getlength(value), y), value, fill=style.MUTED, font=face)


def _targets(target: str | Iterable[object] | None) -> list[str]:
    if target is None:
        return []
    return [target] if isinstance(target, str) else [str(t) for t in target]


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to fit into width x height; small images are enlarged by an integer factor to stay sharp."""
    image = image.convert("RGB")
    scale = min(width / image.width, height / image.height)
    if scale >= 2:
        return image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    size = max(1, round(image.width * min(scale, 1))), max(1, round(image.height * min(scale, 1)))
    return image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image


def as_image(image: Tensor, preprocess: NormalizeConfig) -> Image.Image:
    """Return a normalized image (C, H, W) as a picture of about 160 pixels; for the arguments see `draw_batch`."""
    channels = min(len(image), 3) if len(image) != 2 else 1
    image = image[:channels].detach().to("cpu", torch.float32)
    mean = torch.tensor(preprocess.mean)[:channels, None, None]
    std = torch.tensor(preprocess.std)[:channels, None, None]
    pixels = (image * std + mean).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array if channels == 3 else array[:, :, 0]).convert("RGB")
    longest = max(picture.size)
    if longest <= _TILE // 2:
        scale = _TILE // longest
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    scale_down = min(1.0, 1.5 * _TILE / longest)
    size = max(1, round(picture.width * scale_down)), max(1, round(picture.height * scale_down))
    return picture.resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture
