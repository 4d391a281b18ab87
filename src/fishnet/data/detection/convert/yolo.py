"""Boxes from and to YOLO folders."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import yaml

from fishnet.data.detection.convert.boxes import USUAL, BoxSet, FolderNames, Picture, named
from fishnet.data.folders import image_files, read_lines
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError
from fishnet.files import atomic_write

_SAME = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
"""Other names of splits."""


def yolo_folders(root: Path, names: FolderNames = USUAL) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of labels of every split; empty if a folder has no such layout.

    These are images/<split> and labels/<split> (ultralytics), <split>/images and <split>/labels (Roboflow), or images
    and labels without splits.
    """
    images, labels = names.images or "images", names.annotations or "labels"
    if (root / images).is_dir() and (root / labels).is_dir():
        inside = sorted(path for path in (root / images).iterdir() if path.is_dir())
        found = {path.name: (path, root / labels / path.name) for path in inside}
        found = found or {"train": (root / images, root / labels)}
    else:
        splits = sorted(path for path in root.iterdir() if (path / images).is_dir() and (path / labels).is_dir())
        found = {path.name: (path / images, path / labels) for path in splits}
    return {_SAME.get(name, name): folders for name, folders in found.items()}


def read_yolo(root: Path, names: FolderNames = USUAL) -> BoxSet:
    """Read a YOLO folder with class names in data.yaml or classes.txt; outlines become the boxes around them."""
    classes = _yolo_classes(root)
    found = BoxSet(classes, {})
    outlines = 0
    for split, (folder, labels) in yolo_folders(root, names).items():
        pictures = []
        for path in image_files(folder):
            picture = Picture(path, *image_shape(path).upright)
            outlines += _read_yolo_lines((labels / path.relative_to(folder)).with_suffix(".txt"), picture, classes)
            pictures.append(picture)
        found.splits[split] = pictures
    if outlines:
        found.notes.append(f"{outlines} outlines are reduced to the boxes around them")
    return found


def _yolo_classes(root: Path) -> list[str]:
    for name in ("data.yaml", "dataset.yaml"):
        if (root / name).is_file():
            try:
                names = (yaml.safe_load((root / name).read_text("utf-8")) or {}).get("names")
                names = _by_number(names) if isinstance(names, dict) else names
            except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                text = " ".join(str(error).split())
                raise FishnetError(f"{root / name} is not valid YAML with `names` ({text})") from error
            if isinstance(names, list) and names:
                return [str(name) for name in names]
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt")
    raise FishnetError(f"{root} has no class names: add data.yaml with `names`, or classes.txt")


def _by_number(names: dict[object, object]) -> list[object]:
    """Return names by class number as a list.

    Raises:
        ValueError: The numbers are not 0, 1, 2, ..., so that list indices would be other classes.
    """
    numbered = {int(str(key)): name for key, name in names.items()}
    if sorted(numbered) != list(range(len(names))):
        raise ValueError(f"its classes must be numbered from 0 to {len(names) - 1}, not {', '.join(map(str, names))}")
    return [numbered[number] for number in range(len(names))]


def _read_yolo_lines(path: Path, picture: Picture, classes: list[str]) -> int:
    """Add the boxes of a label file and return how many are those of outlines; without a file there are no objects."""
    outlines = 0
    if not path.is_file():
        return outlines
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
            outline = len(values) >= 6 and len(values) % 2 == 0
            if len(values) != 4 and not outline:
                raise ValueError
            if not all(map(math.isfinite, values)) or not 0 <= label < len(classes):
                raise ValueError
        except ValueError:
            raise FishnetError(
                f"{path}, line {number}: expected a class below {len(classes)} and four numbers, or the corners of an "
                f"outline, not {line[:60]!r}"
            ) from None
        across, down, wide, high = _around(values) if outline else values
        outlines += outline
        box = ((across - wide / 2) * picture.width, (down - high / 2) * picture.height)
        picture.boxes.append((classes[label], *box, wide * picture.width, high * picture.height))
        picture.ignored.append(False)
    return outlines


def _around(corners: list[float]) -> tuple[float, float, float, float]:
    """Return center and size of the box around corners x1 y1 x2 y2 ..."""
    left, right = min(corners[::2]), max(corners[::2])
    top, bottom = min(corners[1::2]), max(corners[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def write_yolo(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a YOLO folder; ignored objects are excluded."""
    numbers = {name: number for number, name in enumerate(found.classes)}
    for split, pictures in found.splits.items():
        for name, picture in named(pictures):
            place(picture.path, out / "images" / split / name)
            lines = []
            for (label, x, y, w, h), ignored in zip(picture.boxes, picture.ignored, strict=True):
                if not ignored:
                    center = (x + w / 2) / picture.width, (y + h / 2) / picture.height
                    shares = *center, w / picture.width, h / picture.height
                    lines.append(" ".join([str(numbers[label]), *(f"{share:.8g}" for share in shares)]))
            text = "\n".join(lines) + "\n" if lines else ""
            atomic_write((out / "labels" / split / name).with_suffix(".txt"), text)
    document: dict[str, object] = {split: f"images/{split}" for split in found.splits}
    document["names"] = dict(enumerate(found.classes))
    atomic_write(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
