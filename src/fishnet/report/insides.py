"""Pictures of what the stages of a trunk see in an image: tail, body and head of a FishNet by stride.

A map has many channels. The picture shows the three directions in which its positions differ most (principal
components) as red, green and blue. Equal colors within a map are similar features; colors of different maps have
nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.drawing import style
from fishnet.models.network import Images, Network

PARTS: dict[str, tuple[str, ...]] = {
    "tail": ("stem", "t1", "t2", "t3"),
    "body": ("b3", "b2", "b1", "bridge"),
    "head": ("h0", "h1", "h2", "h3"),
}
"""Stages of each part, from stride 4 to 32; the head begins with the finest map of the body."""
_SIDE, _GAP, _LINE, _LABEL = 176, 8, 20, 52
_PAPER = "#eef1f5"


def draw_insides(network: Network, images: Images) -> Image.Image | None:
    """Draw the maps of all stages of a trunk for the first of some images; None if the trunk has no stages to show.

    Args:
        network: Network in eval mode.
        images: Images as the network takes them.
    """
    with torch.inference_mode():
        batch, frame = network.batcher(images[:1])
        stages = network.trunk.named_maps(batch)
    if not stages:
        return None
    (height, width), mean, std = frame.sizes[0], network.batcher.mean, network.batcher.std
    shift, scale = (torch.tensor(values, device=batch.device)[:, None, None] for values in (mean, std))
    pixels = (batch[0] * scale + shift).clamp(0, 1)[:, :height, :width]
    photo = Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).cpu().numpy())
    shares = height / frame.canvas[0], width / frame.canvas[1]  # padding is cut off
    maps = {name: _without_padding(value[0], shares) for name, value in stages.items()}
    rows = [[name for name in names if name in maps] for names in PARTS.values()]
    known = {part: names for part, names in zip(PARTS, rows, strict=True) if names}
    return _sheet(photo, maps, known or {"maps": list(maps)})


def _without_padding(value: Tensor, shares: tuple[float, float]) -> Tensor:
    height, width = (max(1, round(side * share)) for side, share in zip(value.shape[-2:], shares, strict=True))
    return value[:, :height, :width]


def components(value: Tensor) -> np.ndarray:
    """Return the three principal components of the positions of a map (C, H, W) as colors, uint8 (H, W, 3).

    Channels are standardized first. Each component is scaled so that the 2nd and 98th percentile are dark and bright,
    and its sign is chosen so that its largest weight is positive, which makes the colors a function of the map.
    """
    channels, height, width = value.shape
    positions = value.reshape(channels, -1).T.double().cpu()
    positions = (positions - positions.mean(0)) / positions.std(0, unbiased=False).clamp(min=1e-6)
    _, _, directions = torch.linalg.svd(positions.T @ positions)
    directions = directions[:3]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    found = (positions @ directions.T).numpy()
    low, high = np.percentile(found, [2, 98], axis=0)
    scaled = ((found - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    colors = np.full((height * width, 3), 0.5)
    colors[:, : scaled.shape[1]] = scaled
    return (255 * colors).round().astype(np.uint8).reshape(height, width, 3)


def _sheet(photo: Image.Image, maps: Mapping[str, Tensor], parts: Mapping[str, Sequence[str]]) -> Image.Image:
    """Arrange the maps: a row per part, a column per stride, the image in front."""
    factor = _SIDE / max(photo.size)
    size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    columns = max(map(len, parts.values()))
    cell_height = size[1] + _LINE
    page = Image.new(
        "RGB", (_LABEL + (columns + 1) * (size[0] + _GAP) + _GAP, len(parts) * (cell_height + _GAP) + _GAP), _PAPER
    )
    draw, face, bold = ImageDraw.Draw(page), style.font(13), style.font(13, bold=True)
    page.paste(photo.resize(size, Image.Resampling.BICUBIC), (_GAP, _GAP + _LINE))
    draw.text((_GAP, _GAP), "image", fill=style.INK, font=bold)
    for row, (part, names) in enumerate(parts.items()):
        top = _GAP + row * (cell_height + _GAP)
        first = 2 * _GAP + size[0]
        draw.text((first, top + _LINE + size[1] // 2 - 8), part, fill=style.INK, font=bold)
        for column, name in enumerate(names):
            left = first + _LABEL + (columns - len(names) + column) * (size[0] + _GAP)
            value = maps[name]
            title = f"{name}: {value.shape[0]} x {value.shape[1]}x{value.shape[2]}"
            draw.text((left, top), style.shorten(title, size[0], face), fill=style.MUTED, font=face)
            picture = Image.fromarray(components(value)).resize(size, Image.Resampling.NEAREST)
            page.paste(picture, (left, top + _LINE))
    return page
