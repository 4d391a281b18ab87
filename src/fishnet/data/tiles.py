"""Positions of overlapping tiles of a large image."""

from __future__ import annotations


def tile_starts(side: int, tile: int, overlap: float, grid: int = 1) -> list[int]:
    """Return the start positions of tiles that cover a side of an image; the last tile ends with the image.

    Args:
        side: Side of the image in pixels.
        tile: Side of a tile in pixels; a tile at least as large as the image begins at 0.
        overlap: Minimum fraction of a tile that overlaps with the next.
        grid: Steps between tiles are multiples of this number of pixels where they are at least as large.
    """
    if side <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap) + 1e-9))  # 10 * (1 - 0.2) is 8, whatever the rounding
    step = step // grid * grid if step >= grid else step
    return [*range(0, side - tile, step), side - tile]
