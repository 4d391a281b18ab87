"""Draw the masks of objects on a picture: a tint inside, and a rim that separates objects of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from fishnet.data.run_lengths import RunLengths, bounding_boxes, decode

_TINT, _RIM = 0.45, 0.9
"""Opacity of the inside of a mask and of its rim."""
_NONE = -1


def paint_masks(pixels: np.ndarray, masks: Tensor | Sequence[RunLengths], colors: Sequence[Sequence[int]]) -> None:
    """Draw masks on an image in place; where masks overlap, the color of the first one is drawn.

    Only the pixels inside the bounding box of each mask are visited, and all masks are blended in one pass.

    Args:
        pixels: Image, uint8 (H, W, 3).
        masks: Masks (N, h, w) or N run lengths of any size, which are resized to the image (nearest).
        colors: Color of each mask.
    """
    if not len(masks):
        return
    inside = np.full(pixels.shape[:2], _NONE, np.int32)
    rims = inside.copy()
    crops = list(_crops(masks, pixels.shape[0], pixels.shape[1]))
    for number, (rows, columns, mask) in reversed(list(enumerate(crops))):  # the first mask is written last
        inside[rows, columns][mask] = number
        rims[rows, columns][_rim(mask, rows, columns, pixels.shape)] = number
    table = np.array(colors, np.float32)
    for owner, opacity in ((inside, _TINT), (rims, _RIM)):
        covered = owner != _NONE
        pixels[covered] = (pixels[covered] * (1 - opacity) + table[owner[covered]] * opacity).astype(np.uint8)


def _crops(masks: Tensor | Sequence[RunLengths], height: int, width: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Return rows, columns and pixels (bool) of the bounding box of each mask, in the size of the picture."""
    boxes = None if isinstance(masks, Tensor) else bounding_boxes(masks).astype(int)
    for number in range(len(masks)):
        if isinstance(masks, Tensor):
            full = masks[number].cpu().numpy() > 0.5
            left, top, right, bottom = _extent(full)
        else:
            assert boxes is not None
            full = decode([masks[number]], *masks[number]["size"])[0].numpy() > 0
            left, top = boxes[number, :2].tolist()
            right, bottom = (boxes[number, :2] + boxes[number, 2:]).tolist()
        rows, columns = _source(height, full.shape[0]), _source(width, full.shape[1])
        down = slice(*np.searchsorted(rows, (top, bottom)).tolist())
        across = slice(*np.searchsorted(columns, (left, right)).tolist())
        yield down, across, full[rows[down, None], columns[across]]


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounding box of a mask: left, top, right, bottom; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _source(size: int, old: int) -> np.ndarray:
    """Return the index before resizing for each index after it (nearest)."""
    return ((np.arange(size) + 0.5) * (old / size)).astype(np.intp)


def _rim(mask: np.ndarray, rows: slice, columns: slice, shape: Sequence[int]) -> np.ndarray:
    """Return the pixels of a mask next to pixels outside of it; the border of the picture is no rim."""
    padded = np.pad(mask, 1)
    if rows.start == 0:
        padded[0] = padded[1]
    if rows.stop == shape[0]:
        padded[-1] = padded[-2]
    if columns.start == 0:
        padded[:, 0] = padded[:, 1]
    if columns.stop == shape[1]:
        padded[:, -1] = padded[:, -2]
    core = padded[:-2] & padded[1:-1] & padded[2:]
    return mask & ~(core[:, :-2] & core[:, 1:-1] & core[:, 2:])
