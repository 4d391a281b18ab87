"""Draw boxes, masks and keypoints on images with torchvision; each class has the same color in all images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from fishnet.data.run_lengths import RunLengths, decode
from fishnet.drawing import style

Color = tuple[int, int, int]
_GAP = 8
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
    image: Tensor, found: Mapping[str, Any], classes: Sequence[str], longest: int | None = 480
) -> Image.Image:
    """Draw objects on an image.

    Args:
        image: Image (3, H, W), uint8 or float in 0..1.
        found: A detection target or detections: `boxes` (N, 4) in pixels of the image and `labels` (N,); optionally
            `scores` (N,), `masks` as tensor (N, H, W) or N run lengths (of any image size), `keypoints` (N, K, 3),
            `outlined` (N,), whose false entries mark masks that are not drawn.
        classes: Class names by label.
        longest: Maximum of the longer side of the picture in pixels; None keeps the size of the image.
    """
    canvas, ratio = _canvas(image, longest)
    labels = [int(label) for label in found["labels"]]
    colors = [class_color(label) for label in labels]
    if not labels:
        return _as_picture(canvas)
    masks = _masks(found.get("masks"), tuple(canvas.shape[-2:]))
    if masks is not None:
        if found.get("outlined") is not None:
            masks &= torch.as_tensor(found["outlined"])[:, None, None]
        canvas = draw_segmentation_masks(canvas, _apart(masks), alpha=0.45, colors=list(colors))
        canvas = draw_segmentation_masks(canvas, _apart(_rims(masks)), alpha=0.9, colors=list(colors))
    boxes = torch.as_tensor(found["boxes"]).float().clone()
    boxes[:, 0::2] *= ratio[1]
    boxes[:, 1::2] *= ratio[0]
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    captions = [classes[label] for label in labels]
    if "scores" in found:
        captions = [f"{name} {100 * float(score):.0f}" for name, score in zip(captions, found["scores"], strict=True)]
    size = max(10, min(canvas.shape[-2:]) // 28)
    colors.reverse()  # objects with the highest scores are drawn last, so their captions are on top
    canvas = draw_bounding_boxes(
        canvas,
        boxes.flip(0),
        captions[::-1],
        colors=list(colors),
        width=max(1, max(canvas.shape[-2:]) // 240),
        font=style.font_file(),
        font_size=size,
        label_colors=[_ink_on(color) for color in colors],
        label_background_colors=list(colors),
        fill_labels=True,
    )
    if "keypoints" in found and len(found["keypoints"]):
        points = torch.as_tensor(found["keypoints"]).float()
        places = points[..., :2] * torch.tensor([ratio[1], ratio[0]])
        canvas = draw_keypoints(canvas, places, colors="white", radius=max(2, size // 5), visibility=points[..., 2] > 0)
    return _as_picture(canvas)


def _canvas(image: Tensor, longest: int | None) -> tuple[Tensor, tuple[float, float]]:
    """Return the image as uint8 in the size of the picture, and the scale factors of height and width."""
    if image.is_floating_point():
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    height, width = image.shape[-2:]
    if longest is None or max(height, width) <= longest:
        return image.contiguous(), (1.0, 1.0)
    factor = longest / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    picture = _as_picture(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    scaled = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    return scaled, (size[0] / height, size[1] / width)


def _masks(masks: Tensor | list[RunLengths] | None, size: tuple[int, ...]) -> Tensor | None:
    """Return masks as bool (N, *size); None if there are none."""
    if masks is None or not len(masks):
        return None
    if isinstance(masks, list):
        masks = decode(masks, *masks[0]["size"])
    masks = masks.float()[:, None]
    return torch.nn.functional.interpolate(masks, size, mode="nearest-exact")[:, 0] > 0.5


def _apart(masks: Tensor) -> Tensor:
    """Remove pixels that an earlier mask covers, since torchvision draws overlapping masks black."""
    covered = torch.cumsum(masks.to(torch.int32), dim=0) - masks.to(torch.int32)
    return masks & (covered == 0)


def _rims(masks: Tensor) -> Tensor:
    """Return the border pixels of masks (N, H, W), which separate objects of one class."""
    inside = -torch.nn.functional.max_pool2d(-masks.float()[:, None], 3, stride=1, padding=1)[:, 0]
    return masks & (inside < 0.5)


def _ink_on(color: Color) -> str:
    """Return black or white, whichever has more contrast to a color."""
    return "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else "white"


def _as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


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
