"""Boxes of a data set, independent of the layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fishnet.data.images import ImageShape, turned_box, turned_points

Layout = Literal["coco", "voc", "yolo"]


@dataclass
class Picture:
    """Image file with its boxes."""

    path: Path
    width: int
    height: int
    boxes: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    """(class, x, y, width, height) in pixels of each box."""
    ignored: list[bool] = field(default_factory=list)
    """Whether evaluation ignores each box: a crowd in COCO, a difficult object in VOC."""
    outlines: dict[int, list[float]] = field(default_factory=dict)
    """Polygon (x0, y0, x1, y1, ... in pixels) of each box that has an outline, by its index in `boxes`."""


@dataclass
class BoxSet:
    """All splits of a data set, independent of the layout."""

    classes: list[str]
    splits: dict[str, list[Picture]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FolderNames:
    """Names of the subfolders of a VOC or YOLO folder; None for the usual names."""

    images: str | None = None
    annotations: str | None = None


USUAL = FolderNames()


def upright(picture: Picture, shape: ImageShape) -> bool:
    """Convert a picture to pixels of the upright image; return whether its stated size was that of its file.

    If the stated size is that of the stored pixels only, the boxes refer to these and are rotated. If stored and
    upright size are equal (no rotation, 180 degrees, or a square), boxes are taken as upright. Any other stated size is
    replaced by that of the file.
    """
    stated = picture.width, picture.height
    picture.width, picture.height = shape.upright
    if stated == shape.stored != shape.upright:
        picture.boxes = [(label, *turned_box(box, stated, shape.orientation)) for label, *box in picture.boxes]
        turned = {place: turned_points(one, stated, shape.orientation) for place, one in picture.outlines.items()}
        picture.outlines = turned
    return stated in (shape.stored, shape.upright)


def polygon_area(points: Sequence[float]) -> float:
    """Return the area of a polygon x0, y0, x1, y1, ... in square pixels (shoelace formula)."""
    corners = list(zip(points[::2], points[1::2], strict=True))
    following = corners[1:] + corners[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(corners, following, strict=True))) / 2


def named(pictures: list[Picture], by_stem: bool = False) -> Iterator[tuple[str, Picture]]:
    """Yield a file name for each picture that is unique in the split when folders are flattened.

    Args:
        pictures: Pictures of a split.
        by_stem: Names must differ without their extension, since each has an annotation file.
    """
    taken: set[str] = set()
    for picture in pictures:
        name, number = picture.path, 1
        while (name.stem if by_stem else name.name) in taken:
            number += 1
            name = picture.path.with_stem(f"{picture.path.stem}_{number}")
        taken.add(name.stem if by_stem else name.name)
        yield name.name, picture
