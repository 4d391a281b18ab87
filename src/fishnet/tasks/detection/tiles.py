"""Detection on large images in overlapping tiles."""

from __future__ import annotations

from typing import cast

import torch

from fishnet.data.tiles import tile_starts
from fishnet.models.heads.types import Detections
from fishnet.tasks.detection.detections import select, tensors


def tile_places(width: int, height: int, tile: int | None, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return the boxes (left, top, right, bottom) of overlapping tiles of equal size that cover an image."""
    if tile is None:
        return [(0, 0, width, height)]
    return [
        (left, top, min(width, left + tile), min(height, top + tile))
        for top in tile_starts(height, tile, overlap)
        for left in tile_starts(width, tile, overlap)
    ]


def merge_tiles(parts: list[Detections], covered: float = 0.5) -> Detections:
    """Merge the detections of all tiles, and remove those of partial objects.

    Of two detections of one class from different tiles, the one with the lower score is removed if more than a fraction
    of the smaller box is covered: an object that is cut off by the border of a tile has a low IoU with the whole
    object, but lies inside it. Detections from one tile are all kept, since true objects may overlap more than that.

    Args:
        parts: Detections of each tile, in pixels of the image.
        covered: Fraction of the smaller box.
    """
    names = [name for name, _ in tensors(parts[0])]
    joined = {name: torch.cat([dict(tensors(part))[name] for part in parts]) for name in names}
    order = joined["scores"].argsort(descending=True, stable=True)
    tiles = torch.cat([torch.full((len(part["scores"]),), number) for number, part in enumerate(parts)])[order]
    merged = select(cast(Detections, joined), order)
    boxes, labels = merged["boxes"], merged["labels"]
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if not alive[place]:
            continue
        corner = torch.maximum(boxes[place, :2], boxes[:, :2])
        shared = (torch.minimum(boxes[place, 2:], boxes[:, 2:]) - corner).clamp(min=0).prod(1)
        hidden = shared > covered * torch.minimum(areas[place], areas).clamp(min=1e-6)
        hidden &= (labels == labels[place]) & (tiles != tiles[place])
        hidden[: place + 1] = False
        alive &= ~hidden
    return select(merged, alive)
