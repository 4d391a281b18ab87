"""Visualization of the feature maps of a trunk: tail, body and head of a FishNet, or the maps of other trunks.

There are two pictures per stage. `strength` is the norm over the channels of the difference between the features at a
position and their mean over the image. `components` shows the first three principal components of the channels, over
all positions of the image, as red, green and blue, so that similar features have similar colors. Both are scaled to the
range from the 1st to the 99th percentile. Colors of different stages are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fishnet.config import NormalizeConfig
from fishnet.drawing import style
from fishnet.drawing.sheets import as_image
from fishnet.errors import UsageError
from fishnet.models.network import Images, Network
from fishnet.runner.names import UniqueStems

CAPTION = (
    "Feature maps of one image, by stage. Left of each pair: norm over the channels of the difference between the "
    "features at a position and their mean over the image (yellow is high). Right: the first three principal "
    "components of the channels as red, green and blue, so that similar features have similar colors."
)
"""Caption of the picture in a report."""
PLACES = {
    "stem": ("tail", 0), "t1": ("tail", 1), "t2": ("tail", 2), "t3": ("tail", 3),
    "bridge": ("body", 3), "b1": ("body", 2), "b2": ("body", 1), "b3": ("body", 0),
    "h1": ("head", 1), "h2": ("head", 2), "h3": ("head", 3),
}  # fmt: skip
"""Row and column of each stage of a FishNet, from stride 4 on the left to 32; the head begins with the finest map of
the body."""
_OTHER = "maps"
_TILE, _GAP, _LINE, _MARGIN = 128, 6, 20, 10
_PAPER = "#ffffff"


class Cell(NamedTuple):
    """A stage in the picture."""

    part: str
    """Row: tail, body, head, or `maps` of other trunks."""
    column: int
    title: str
    values: np.ndarray
    """Features of the image without its padding, float64 (channels, height, width)."""


@contextmanager
def first_batch(network: Network) -> Iterator[list[Tensor]]:
    """Record the first normalized batch (N, C, H, W) that the trunk receives in the returned list."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen:
            seen.append(inputs[0].detach())

    handle = network.trunk.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def draw_insides(network: Network, images: Images) -> Image.Image | None:
    """Draw the feature maps of a network's trunk for the first of some images, as a sheet with the image. The result is
    deterministic.

    Args:
        network: Network in eval mode.
        images: Network inputs. A batch that is padded with zeros at the bottom and on the right is drawn without its
            padding.

    Returns:
        The sheet; None if the network has no feature maps.
    """
    with torch.inference_mode():
        batch, _ = network.batcher(images[:1])
        maps = network.trunk.named_maps(batch)
    height, width = _size_without_padding(batch[0])
    cells = _cells(maps, (batch.shape[-2], batch.shape[-1]), (height, width))
    preprocess = NormalizeConfig(*(_three(values) for values in (network.batcher.mean, network.batcher.std)))
    return _sheet(as_image(batch[0, :, :height, :width], preprocess), cells) if cells else None


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Return a value for each of the first three channels."""
    first, second, third = (values[min(place, len(values) - 1)] for place in range(3))
    return first, second, third


class InsidePictures:
    """A sheet per image in OUT/insides, named after the image.

    Args:
        out: Folder to write insides/ into.
        network: Network in eval mode.
    """

    patterns: tuple[str, ...] = ("insides/*.png",)

    def __init__(self, out: Path, network: Network) -> None:
        self.out, self.network = out, network
        self.written: list[Path] = []
        self._names = UniqueStems()

    def add(self, file: str, run: Callable[[], object]) -> None:
        """Draw one image.

        Args:
            file: Name of the image.
            run: Passes the image through the network.

        Raises:
            UsageError: The network has no feature maps.
        """
        with first_batch(self.network) as seen:
            run()
        picture = draw_insides(self.network, seen[0]) if seen else None
        if picture is None:
            raise UsageError("--insides: timm does not provide feature maps of this network; leave the option out")
        path = self.out / "insides" / f"{self._names.of(file)}.png"
        self.written.append(style.save_picture(picture, path))


def _size_without_padding(image: Tensor) -> tuple[int, int]:
    """Return height and width without the rows and columns of zeros at the bottom and on the right; a normalized pixel
    is practically never zero in all channels."""
    used = (image != 0).any(0)
    rows, columns = used.any(1).nonzero(), used.any(0).nonzero()
    if not len(rows):
        return image.shape[-2], image.shape[-1]
    return int(rows.max()) + 1, int(columns.max()) + 1


def _cells(maps: Mapping[str, Tensor], canvas: tuple[int, int], size: tuple[int, int]) -> list[Cell]:
    """Return the stages with their cells, cropped to the image.

    Args:
        maps: Maps (1, C, h, w) by stage.
        canvas: Height and width of the batch.
        size: Height and width of the image in it.
    """
    found = []
    for number, (stage, values) in enumerate(maps.items()):
        part, column = PLACES.get(stage, (_OTHER, number))
        channels, height, width = values.shape[1:]
        rows = max(1, math.ceil(size[0] * height / canvas[0]))
        columns = max(1, math.ceil(size[1] * width / canvas[1]))
        own = values[0, :, :rows, :columns].double().nan_to_num().cpu().numpy()
        title = f"{stage}: {channels} channels, stride {round(canvas[0] / height)}"
        found.append(Cell(part, column, title if part != _OTHER else title.capitalize(), own))
    return found


def strength(values: np.ndarray) -> np.ndarray:
    """Return the norm over the channels of the difference between features (C, H, W) and their spatial mean, (H, W),
    scaled to 0..1; zeros if there is no difference."""
    difference = values - values.mean((1, 2), keepdims=True)
    return _scaled(np.sqrt((difference**2).sum(0)), 0.0)


def components(values: np.ndarray) -> np.ndarray:
    """Return the first three principal components of features (C, H, W) over all positions, scaled to 0..1, (H, W, 3).

    Channels are standardized first. The sign of a component is chosen so that its largest weight is positive.
    Components without variance are 0.5.
    """
    channels, height, width = values.shape
    points = values.reshape(channels, -1).T
    points = points - points.mean(0)
    points = points / np.maximum(points.std(0), 1e-6)
    variances, weights = np.linalg.eigh(points.T @ points / len(points))
    found = np.full((height * width, 3), 0.5)
    for place in range(min(3, channels)):
        own = weights[:, -1 - place]
        if variances[-1 - place] > 1e-9 * max(variances[-1], 1e-30):
            sign = 1.0 if own[np.abs(own).argmax()] > 0 else -1.0
            found[:, place] = _scaled(points @ (sign * own), 0.5)
    return found.reshape(height, width, 3)


def _scaled(values: np.ndarray, flat: float) -> np.ndarray:
    """Return values with the 1st to the 99th percentile scaled to 0..1; all are `flat` if there is no range."""
    low, high = np.quantile(values, (0.01, 0.99))
    if high - low <= 1e-12 * max(1.0, abs(high)):
        low, high = values.min(), values.max()
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return np.full_like(values, flat)
    return np.clip((values - low) / (high - low), 0, 1)


def _sheet(image: Image.Image, cells: list[Cell]) -> Image.Image:
    """Arrange the image and the stages: a row per part, a pair of pictures per stage."""
    size = _fitted(image.size)
    parts = list(dict.fromkeys(cell.part for cell in cells))
    columns = 1 + max(cell.column for cell in cells)
    pair = 2 * size[0] + _GAP
    step = max(pair, 2 * _TILE) + 2 * _GAP, size[1] + _LINE + 2 * _GAP
    name = 60
    top = size[1] + _LINE + 3 * _MARGIN
    page = Image.new("RGB", (2 * _MARGIN + name + columns * step[0], top + len(parts) * step[1] + _MARGIN), _PAPER)
    draw, face, bold = ImageDraw.Draw(page), style.font(12), style.font(14, bold=True)
    page.paste(image.resize(size, Image.Resampling.BICUBIC), (_MARGIN + name, _MARGIN))
    draw.text((_MARGIN + name, _MARGIN + size[1] + 3), "image", fill=style.INK, font=face)
    for line, text in enumerate(_legend()):
        draw.text((_MARGIN + name + size[0] + 16, _MARGIN + 18 * line), text, fill=style.MUTED, font=face)
    for row, part in enumerate(parts):
        color = style.PARTS.get(part, style.INK)
        draw.text((_MARGIN, top + row * step[1] + _LINE), part, fill=color, font=bold)
    for cell in cells:
        x, y = _MARGIN + name + cell.column * step[0], top + parts.index(cell.part) * step[1]
        draw.text((x, y), style.shorten(cell.title, step[0] - _GAP, face), fill=style.INK, font=face)
        page.paste(_enlarged(_colored(strength(cell.values)), size), (x, y + _LINE))
        page.paste(_enlarged(components(cell.values), size), (x + size[0] + _GAP, y + _LINE))
    return page


def _legend() -> list[str]:
    return [
        "Left of each pair: strength, the norm over the channels of the difference",
        "between features and their mean over the image, from dark to yellow.",
        "Right: the first three principal components of the channels as red, green",
        "and blue: similar features have similar colors.",
        "Each picture has its own scale.",
    ]


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of the pictures of a stage."""
    factor = _TILE / max(size)
    return max(8, round(size[0] * factor)), max(8, round(size[1] * factor))


def _colored(values: np.ndarray) -> np.ndarray:
    """Return values in 0..1 as colors (H, W, 3) in 0..1."""
    return np.asarray(matplotlib.colormaps["viridis"](values))[..., :3]


def _enlarged(colors: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return colors (H, W, 3) in 0..1 as a picture whose pixels are those of the map."""
    pixels = (255 * colors).round().astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
