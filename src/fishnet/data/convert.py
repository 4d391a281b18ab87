"""Boxes between the layouts of COCO, Pascal VOC and YOLO; images are linked, or copied where a link cannot be made.

- COCO: DIR/annotations/instances_<split>.json, images in DIR/<split>/
- VOC: DIR/Annotations/*.xml, DIR/JPEGImages/, DIR/ImageSets/Main/<split>.txt; corners are whole pixels counted from 1
- YOLO: DIR/images/<split>/, DIR/labels/<split>/*.txt (class, centre and size as shares of the image), DIR/data.yaml

Masks and keypoints live in COCO's layout only; they are left behind on the way to the others.
"""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from PIL import Image

from fishnet.data.coco import read_coco, summarise
from fishnet.data.detection import image_folder
from fishnet.data.layouts import check_root, image_files
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_write

Layout = Literal["coco", "voc", "yolo"]


@dataclass
class Picture:
    """An image file and its boxes."""

    path: Path
    width: int
    height: int
    boxes: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    """Class, x, y, width, height in pixels."""
    crowds: list[bool] = field(default_factory=list)


@dataclass
class BoxSet:
    """Every split of a data set, whatever layout it came from."""

    classes: list[str]
    splits: dict[str, list[Picture]]
    notes: list[str] = field(default_factory=list)


@dataclass
class ConversionReport:
    """What `convert_boxes` wrote."""

    out: Path
    images: dict[str, int]
    boxes: int
    notes: list[str]

    def describe(self) -> str:
        """Return it in words."""
        counts = ", ".join(f"{split} {count} images" for split, count in self.images.items())
        return "\n".join([f"{self.out}: {counts}, {self.boxes} boxes", *self.notes])


def detect_layout(root: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        FishnetError: It is none of the three.
    """
    check_root(root)
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if (root / "Annotations").is_dir():
        return "voc"
    if (root / "labels").is_dir() and (root / "images").is_dir():
        return "yolo"
    raise FishnetError(
        f"{root} is of no known layout: COCO has annotations/instances_*.json, VOC Annotations/*.xml, YOLO images/ and "
        "labels/"
    )


def convert_boxes(source: Path, dest: Path, to: Layout, copy: bool = False) -> ConversionReport:
    """Write a detection data set in another layout.

    Args:
        source: Folder in any of the three layouts.
        dest: Folder to make; it must not hold anything.
        to: Layout to write.
        copy: Copy images instead of linking them.

    Raises:
        FishnetError: The source is damaged; names the file and what is wrong.
        UsageError: `dest` is not empty, or the source has the layout already.
    """
    kind = detect_layout(source)
    if kind == to:
        raise UsageError(f"{source} has the layout {to} already")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty; name another folder")
    found = {"coco": read_coco_boxes, "voc": read_voc, "yolo": read_yolo}[kind](source)
    place = _Placer(copy)
    {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[to](found, dest, place)
    return ConversionReport(
        dest,
        {split: len(pictures) for split, pictures in found.splits.items()},
        sum(len(picture.boxes) for pictures in found.splits.values() for picture in pictures),
        found.notes + place.notes(),
    )


class _Placer:
    """Brings images into a new folder by hard link, or by copy."""

    def __init__(self, copy: bool) -> None:
        self.copy, self.copied = copy, 0

    def __call__(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.copy:
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                self.copied += 1
        shutil.copyfile(source, target)

    def notes(self) -> list[str]:
        """Return what to say of it."""
        return [f"{self.copied} images were copied: no links between these folders"] if self.copied else []


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file from its header.

    Raises:
        FishnetError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise FishnetError(f"cannot read the image {path} ({error}); replace or remove it") from error


# COCO ----------------------------------------------------------------------------------------------------------------


def read_coco_boxes(root: Path) -> BoxSet:
    """Read every split of a COCO folder."""
    found = BoxSet([], {})
    for path in sorted((root / "annotations").glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        file = read_coco(path)
        if file.problems:
            raise FishnetError(
                f"{path} has {len(file.problems)} problems: {summarise(file.problems)}. "
                f"`fishnet data check detection {root} --fix OUT.json` mends what can be mended"
            )
        if found.classes and file.classes != found.classes:
            raise FishnetError(f"{path} has other categories than the splits before it; make them equal")
        found.classes = file.classes
        folder = image_folder(root, split, file.file_names)
        pictures = []
        for index, name in enumerate(file.file_names):
            objects = file.objects(index)
            rows = zip(file.class_of[objects].tolist(), file.boxes[objects].tolist(), strict=True)
            boxes = [(file.classes[label], *box) for label, box in rows]
            size = int(file.widths[index]), int(file.heights[index])
            pictures.append(Picture(folder / name, *size, boxes, file.crowd[objects].tolist()))
        found.splits[split] = pictures
        if (file.outlines.kind != 0).any():
            found.notes.append(f"{path.name}: masks are left behind")
    return found


def write_coco(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a COCO folder."""
    categories = [{"id": number, "name": name} for number, name in enumerate(found.classes, 1)]
    numbers = {name: number for number, name in enumerate(found.classes, 1)}
    for split, pictures in found.splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, picture) in enumerate(named(pictures), 1):
            place(picture.path, out / split / name)
            images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
            crowds = picture.crowds or [False] * len(picture.boxes)
            for (label, x, y, w, h), crowd in zip(picture.boxes, crowds, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": numbers[label],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(crowd),
                        "segmentation": [],
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        atomic_write(out / "annotations" / f"instances_{split}.json", json.dumps(document, ensure_ascii=False))


def named(pictures: list[Picture]) -> Iterator[tuple[str, Picture]]:
    """Yield a file name for each picture, unique within the split even where folders are flattened."""
    seen: Counter[str] = Counter()
    for picture in pictures:
        name = picture.path.name
        seen[name] += 1
        if seen[name] > 1:
            name = f"{picture.path.stem}_{seen[name]}{picture.path.suffix}"
        yield name, picture


# Pascal VOC ----------------------------------------------------------------------------------------------------------


def read_voc(root: Path) -> BoxSet:
    """Read a VOC folder; without ImageSets all of it is the split train."""
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # lists per class (cat_train.txt) hold labels beside the names
    splits = {path.stem: path.read_text("utf-8").split() for path in lists if "_" not in path.stem}
    splits = {name: members for name, members in splits.items() if name != "trainval" or len(splits) == 1}
    if not splits:
        splits = {"train": [path.stem for path in sorted((root / "Annotations").glob("*.xml"))]}
    found = BoxSet([], {})
    for split, members in splits.items():
        found.splits[split] = [_read_voc_file(root, root / "Annotations" / f"{name}.xml") for name in members]
    present = {box[0] for pictures in found.splits.values() for picture in pictures for box in picture.boxes}
    listed = root / "classes.txt"
    stated = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    found.classes = stated if present <= set(stated) else sorted(present)
    return found


def _read_voc_file(root: Path, path: Path) -> Picture:
    try:
        text = path.read_text("utf-8")
        if "<!DOCTYPE" in text:
            raise FishnetError(f"{path} declares a document type; VOC files have none, and such files can be bombs")
        tree = ET.fromstring(text)
    except FileNotFoundError:
        raise FishnetError(f"{path} does not exist, but a list in {root / 'ImageSets' / 'Main'} names it") from None
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise FishnetError(f"{path} is no valid XML ({error}); write it again") from error
    name = tree.findtext("filename") or f"{path.stem}.jpg"
    image = root / "JPEGImages" / name
    width, height = image_size(image)
    picture = Picture(image, width, height)
    for entry in tree.iter("object"):
        label, box = entry.findtext("name"), entry.find("bndbox")
        try:
            corners = [float((box.findtext(side) if box is not None else None) or "") for side in _CORNERS]
        except ValueError:
            raise FishnetError(f"{path}: an object has no name or no box of four numbers; mend it") from None
        if not label:
            raise FishnetError(f"{path}: an object has no name or no box of four numbers; mend it")
        # pixels are counted from 1, and both ends belong to the box
        x1, y1, x2, y2 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        picture.boxes.append((label, x1, y1, x2 - x1, y2 - y1))
        picture.crowds.append(False)
    return picture


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_voc(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a VOC folder; crowds are left out."""
    taken: Counter[str] = Counter()
    for split, pictures in found.splits.items():
        members = []
        for picture in pictures:
            stem = picture.path.stem
            taken[stem] += 1
            stem = stem if taken[stem] == 1 else f"{stem}_{taken[stem]}"
            name = stem + picture.path.suffix
            place(picture.path, out / "JPEGImages" / name)
            atomic_write(out / "Annotations" / f"{stem}.xml", _voc_xml(picture, name))
            members.append(stem)
        atomic_write(out / "ImageSets" / "Main" / f"{split}.txt", "\n".join(members) + "\n")
    atomic_write(out / "classes.txt", "\n".join(found.classes) + "\n")


def _voc_xml(picture: Picture, name: str) -> str:
    tree = ET.Element("annotation")
    ET.SubElement(tree, "folder").text = "JPEGImages"
    ET.SubElement(tree, "filename").text = name
    size = ET.SubElement(tree, "size")
    for side, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        ET.SubElement(size, side).text = str(value)
    for (label, x, y, w, h), crowd in zip(picture.boxes, picture.crowds, strict=True):
        if crowd:
            continue
        entry = ET.SubElement(tree, "object")
        for field_name, text in (("name", label), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ET.SubElement(entry, field_name).text = text
        box = ET.SubElement(entry, "bndbox")
        corners = (round(x) + 1, round(y) + 1, max(round(x) + 1, round(x + w)), max(round(y) + 1, round(y + h)))
        for side, corner in zip(_CORNERS, corners, strict=True):
            ET.SubElement(box, side).text = str(corner)
    ET.indent(tree)
    return ET.tostring(tree, encoding="unicode") + "\n"


# YOLO ----------------------------------------------------------------------------------------------------------------


def read_yolo(root: Path) -> BoxSet:
    """Read a YOLO folder; the names of the classes stand in data.yaml or classes.txt."""
    classes = _yolo_classes(root)
    found = BoxSet(classes, {})
    folders = sorted(path for path in (root / "images").iterdir() if path.is_dir()) or [root / "images"]
    for folder in folders:
        split = folder.name if folder != root / "images" else "train"
        labels = root / "labels" / folder.relative_to(root / "images")
        pictures = []
        for path in image_files(folder):
            width, height = image_size(path)
            picture = Picture(path, width, height)
            _read_yolo_lines((labels / path.relative_to(folder)).with_suffix(".txt"), picture, classes)
            pictures.append(picture)
        found.splits[split] = pictures
    return found


def _yolo_classes(root: Path) -> list[str]:
    for name in ("data.yaml", "dataset.yaml"):
        if (root / name).is_file():
            try:
                names = (yaml.safe_load((root / name).read_text("utf-8")) or {}).get("names")
            except (yaml.YAMLError, AttributeError) as error:
                raise FishnetError(f"{root / name} is no valid YAML ({error})") from error
            names = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
            if isinstance(names, list) and names:
                return [str(name) for name in names]
    if (root / "classes.txt").is_file():
        return [line.strip() for line in (root / "classes.txt").read_text("utf-8").splitlines() if line.strip()]
    raise FishnetError(f"{root} does not name its classes: data.yaml with `names`, or classes.txt, is missing")


def _read_yolo_lines(path: Path, picture: Picture, classes: list[str]) -> None:
    """Add the boxes of a label file; an image without one has no object."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
            if len(values) != 4 or not 0 <= label < len(classes):
                raise ValueError
        except ValueError:
            raise FishnetError(
                f"{path}, line {number}: expected a class below {len(classes)} and four shares, not {line[:60]!r}"
            ) from None
        across, down, wide, high = values
        box = ((across - wide / 2) * picture.width, (down - high / 2) * picture.height)
        picture.boxes.append((classes[label], *box, wide * picture.width, high * picture.height))
        picture.crowds.append(False)


def write_yolo(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a YOLO folder; crowds are left out."""
    numbers = {name: number for number, name in enumerate(found.classes)}
    for split, pictures in found.splits.items():
        for name, picture in named(pictures):
            place(picture.path, out / "images" / split / name)
            lines = []
            for (label, x, y, w, h), crowd in zip(picture.boxes, picture.crowds, strict=True):
                if not crowd:
                    centre = (x + w / 2) / picture.width, (y + h / 2) / picture.height
                    shares = *centre, w / picture.width, h / picture.height
                    lines.append(" ".join([str(numbers[label]), *(f"{share:.8g}" for share in shares)]))
            text = "\n".join(lines) + "\n" if lines else ""
            atomic_write((out / "labels" / split / name).with_suffix(".txt"), text)
    document: dict[str, Any] = {split: f"images/{split}" for split in found.splits}
    document["names"] = dict(enumerate(found.classes))
    atomic_write(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
