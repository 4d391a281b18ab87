"""Boxes from and to YOLO folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from fishnet.data.detection.convert.boxes import USUAL, BoxSet, FolderNames, Picture, named
from fishnet.data.detection.layouts import split_folders
from fishnet.data.folders import image_files, numbered_lines, read_lines
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError, counted
from fishnet.files import atomic_write

_SAME = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
"""Other names of splits."""
_SHOWN = 5
"""Faulty lines that an error message shows."""


def yolo_folders(root: Path, names: FolderNames = USUAL) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of labels of every split, by the usual name of the split."""
    found = split_folders(root, names.images or "images", names.annotations or "labels")
    return {_SAME.get(name, name): folders for name, folders in found.items()}


def read_yolo(root: Path, names: FolderNames = USUAL) -> BoxSet:
    """Read a YOLO folder with class names in data.yaml or classes.txt; an outline's box is the box around it.

    Raises:
        FishnetError: Missing class names, or invalid lines in label files (their number and the first five).
    """
    classes, keypoints = _description(root)
    found = BoxSet(classes, {})
    faults: list[str] = []
    for split, (folder, labels) in yolo_folders(root, names).items():
        pictures = []
        for path in image_files(folder):
            picture = Picture(path, *image_shape(path).upright)
            faults += _read_labels(_label_file(labels, path.relative_to(folder)), picture, classes, keypoints)
            pictures.append(picture)
        found.splits[split] = pictures
    if faults:
        first = "; ".join(faults[:_SHOWN]) + ("; ..." if len(faults) > _SHOWN else "")
        raise FishnetError(
            f"{counted(len(faults), 'line')} of the label files of {root} cannot be read; each must be a class below "
            f"{len(classes)} and four numbers, or the corners of an outline: {first}"
        )
    if keypoints:
        found.notes.append("keypoints were not converted")
    return found


def _label_file(labels: Path, image: Path) -> Path:
    """Return the label file of an image, whose extension may be in upper case."""
    path = (labels / image).with_suffix(".txt")
    upper = path.with_suffix(".TXT")
    return upper if upper.is_file() and not path.is_file() else path


def _description(root: Path) -> tuple[list[str], bool]:
    """Return the class names of a YOLO folder, and whether its objects have keypoints."""
    for name in ("data.yaml", "dataset.yaml"):
        if (root / name).is_file():
            try:
                document = yaml.safe_load((root / name).read_text("utf-8")) or {}
                names = document.get("names")
                names = _by_number(names) if isinstance(names, dict) else names
            except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                text = " ".join(str(error).split())
                raise FishnetError(f"{root / name} is not valid YAML with `names` ({text})") from error
            if isinstance(names, list) and names:
                return [str(name) for name in names], bool(document.get("kpt_shape"))
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt"), False
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


def _read_labels(path: Path, picture: Picture, classes: list[str], keypoints: bool) -> list[str]:
    """Add the boxes and outlines of a label file and return its invalid lines; a missing file means no objects."""
    faults = []
    for number, line in numbered_lines(path) if path.is_file() else []:
        try:
            label, *values = _numbers(line, len(classes))
            if keypoints:  # they follow the box
                values = values[:4]
            if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                raise ValueError
        except ValueError:
            faults.append(f"{path}:{number} {line[:60]!r}")
            continue
        if len(values) != 4:
            sides = picture.width, picture.height
            picture.outlines[len(picture.boxes)] = [value * sides[axis % 2] for axis, value in enumerate(values)]
        across, down, wide, high = _around(values) if len(values) != 4 else values
        box = ((across - wide / 2) * picture.width, (down - high / 2) * picture.height)
        picture.boxes.append((classes[int(label)], *box, wide * picture.width, high * picture.height))
        picture.ignored.append(False)
    return faults


def _numbers(line: str, classes: int) -> list[float]:
    """Return the numbers of a line; raises ValueError if one is not finite, or the first is not a class."""
    label, *words = line.split()
    values = [int(label), *map(float, words)]
    if not all(map(math.isfinite, values)) or not 0 <= values[0] < classes:
        raise ValueError
    return values


def _around(corners: Sequence[float]) -> tuple[float, float, float, float]:
    """Return center and size of the box around corners x1 y1 x2 y2 ..."""
    left, right = min(corners[::2]), max(corners[::2])
    top, bottom = min(corners[1::2]), max(corners[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _shares(picture: Picture, outline: list[float] | None, box: Sequence[float]) -> list[float]:
    """Return the corners of an outline, or center and size of a box, as fractions of the image."""
    sides = picture.width, picture.height
    if outline is not None:
        return [min(1.0, max(0.0, value / sides[axis % 2])) for axis, value in enumerate(outline)]
    x, y, w, h = box
    return [(x + w / 2) / sides[0], (y + h / 2) / sides[1], w / sides[0], h / sides[1]]


def write_yolo(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a YOLO folder, with polygons where there are outlines; ignored objects are excluded."""
    numbers = {name: number for number, name in enumerate(found.classes)}
    for split, pictures in found.splits.items():
        for name, picture in named(pictures, by_stem=True):
            place(picture.path, out / "images" / split / name)
            lines = []
            for index, (label, *box) in enumerate(picture.boxes):
                if not picture.ignored[index]:
                    shares = _shares(picture, picture.outlines.get(index), box)
                    lines.append(" ".join([str(numbers[label]), *(f"{share:.8g}" for share in shares)]))
            text = "\n".join(lines) + "\n" if lines else ""
            atomic_write((out / "labels" / split / name).with_suffix(".txt"), text)
    document: dict[str, object] = {split: f"images/{split}" for split in found.splits}
    document["names"] = dict(enumerate(found.classes))
    atomic_write(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
