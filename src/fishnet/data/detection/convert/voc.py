"""Boxes from and to Pascal VOC folders."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fishnet.data.detection.convert.boxes import USUAL, BoxSet, FolderNames, Picture, upright
from fishnet.data.folders import all_files, read_lines
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError
from fishnet.files import atomic_write

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, names: FolderNames = USUAL) -> BoxSet:
    """Read a VOC folder; without ImageSets all images belong to train."""
    annotations, images = root / (names.annotations or "Annotations"), root / (names.images or "JPEGImages")
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # lists per class (cat_train.txt) contain labels next to the names
    splits = {path.stem: read_lines(path) for path in lists if "_" not in path.stem}
    splits = {name: members for name, members in splits.items() if name != "trainval" or len(splits) == 1}
    if not splits:
        splits = {"train": [path.stem for path in all_files(annotations) if path.suffix.lower() == ".xml"]}
    found = BoxSet([], {})
    other_size = 0
    for split, members in splits.items():
        read = [_read_voc_file(root, _existing(annotations / f"{name}.xml"), images) for name in members]
        found.splits[split] = [picture for picture, _ in read]
        other_size += sum(not fits for _, fits in read)
    if other_size:
        found.notes.append(f"{other_size} files state a wrong <size>; the size of the image is used")
    present = {box[0] for pictures in found.splits.values() for picture in pictures for box in picture.boxes}
    listed = root / "classes.txt"
    stated = read_lines(listed) if listed.is_file() else []
    found.classes = stated if present <= set(stated) else sorted(present)
    return found


def _existing(path: Path) -> Path:
    """Return a path, with its extension in upper case if only that file exists."""
    upper = path.with_suffix(path.suffix.upper())
    return upper if upper.is_file() and not path.is_file() else path


def _read_voc_file(root: Path, path: Path, images: Path) -> tuple[Picture, bool]:
    """Return the image and boxes of a VOC file, and whether it states the size of the image correctly."""
    try:
        text = path.read_text("utf-8")
        if "<!DOCTYPE" in text:
            raise FishnetError(
                f"{path} declares a document type, which VOC files do not have and which may be an XML bomb; remove it"
            )
        tree = ET.fromstring(text)
    except FileNotFoundError:
        raise FishnetError(f"{path} does not exist, but a list in {root / 'ImageSets' / 'Main'} contains it") from None
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise FishnetError(f"{path} is not valid XML ({error}); create it again") from error
    image = _existing(images / (tree.findtext("filename") or f"{path.stem}.jpg"))
    shape = image_shape(image)
    picture = Picture(image, *_voc_size(tree, shape.upright))
    for entry in tree.iter("object"):
        label, box = entry.findtext("name"), entry.find("bndbox")
        try:
            corners = [float((box.findtext(side) if box is not None else None) or "") for side in _CORNERS]
            if not all(map(math.isfinite, corners)):
                raise ValueError
        except ValueError:
            raise FishnetError(f"{path}: an object has no name or no box of four numbers; correct it") from None
        if not label:
            raise FishnetError(f"{path}: an object has no name or no box of four numbers; correct it")
        # pixels are counted from 1, and both ends are part of the box
        x1, y1, x2, y2 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        picture.boxes.append((label, x1, y1, x2 - x1, y2 - y1))
        picture.ignored.append((entry.findtext("difficult") or "0").strip().lower() not in ("0", "false"))
    return picture, upright(picture, shape)


def _voc_size(tree: ET.Element, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the size that a VOC file states, or `otherwise`, since some tools write none or 0."""
    try:
        width, height = (int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return otherwise
    return (width, height) if width > 0 and height > 0 else otherwise


def write_voc(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a VOC folder."""
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
    for (label, x, y, w, h), ignored in zip(picture.boxes, picture.ignored, strict=True):
        entry = ET.SubElement(tree, "object")
        texts = {"name": label, "pose": "Unspecified", "truncated": "0", "difficult": str(int(ignored))}
        for field_name, text in texts.items():
            ET.SubElement(entry, field_name).text = text
        box = ET.SubElement(entry, "bndbox")
        corners = (round(x) + 1, round(y) + 1, max(round(x) + 1, round(x + w)), max(round(y) + 1, round(y + h)))
        for side, corner in zip(_CORNERS, corners, strict=True):
            ET.SubElement(box, side).text = str(corner)
    ET.indent(tree)
    return ET.tostring(tree, encoding="unicode") + "\n"
