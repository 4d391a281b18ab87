"""Convert boxes between the COCO, Pascal VOC and YOLO layouts; images are linked, or copied if links are impossible.

- COCO: DIR/annotations/instances_<split>.json, images in DIR/<split>/
- VOC: DIR/Annotations/*.xml, DIR/JPEGImages/, DIR/ImageSets/Main/<split>.txt; corners are integer pixels from 1
- YOLO: DIR/images/<split>/, DIR/labels/<split>/*.txt (class, centre and size relative to the image), DIR/data.yaml

Only COCO supports masks and keypoints; they are lost in the other layouts. Boxes are always in pixels of the upright
image, as viewers show it: if a file states the stored size of an image that its EXIF orientation rotates, its boxes are
rotated too.

Two layouts can mark objects that evaluation ignores, `iscrowd` in COCO and `difficult` in VOC, and each is converted to
the other: COCO's evaluation ignores detections inside a crowd (by intersection over the area of the detection), VOC's
ignores detections that match a difficult object.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from fishnet.data.detection.coco import read_coco, summarise
from fishnet.data.detection.dataset import image_folder
from fishnet.data.detection.split import stratify
from fishnet.data.detection.types import AnnotationEntry, ImageEntry
from fishnet.data.folders import check_root, image_files, read_lines
from fishnet.data.images import ImageShape, image_shape, turned_box
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_write

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


_USUAL = FolderNames()


@dataclass
class ConversionReport:
    """Result of `convert_boxes`."""

    out: Path
    images: dict[str, int]
    boxes: int
    notes: list[str]

    def describe(self) -> str:
        """Describe the result as text."""
        counts = ", ".join(f"{split} {count} images" for split, count in self.images.items())
        return "\n".join([f"{self.out}: {counts}, {self.boxes} boxes", *self.notes])


def detect_layout(root: Path, names: FolderNames = _USUAL) -> Layout:
    """Detect the layout of a folder.

    Raises:
        FishnetError: The layout is none of the three, or a folder in `names` does not exist.
    """
    check_root(root, "a COCO, Pascal VOC or YOLO data set")
    for name in (names.images, names.annotations):
        if name is not None and not (root / name).is_dir():
            raise FishnetError(f"{root} has no folder {name}; --images and --annotations are folders inside it")
    if names.annotations is not None:
        for kind, ending in (("voc", "*.xml"), ("yolo", "*.txt")):
            if next((root / names.annotations).rglob(ending), None) is not None:
                return kind  # type: ignore[return-value]
        raise FishnetError(f"{root / names.annotations} contains neither .xml files (VOC) nor .txt files (YOLO)")
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if (root / "Annotations").is_dir():
        return "voc"
    if (root / "labels").is_dir() and (root / (names.images or "images")).is_dir():
        return "yolo"
    raise FishnetError(
        f"{root} has no known layout: COCO has annotations/instances_*.json, VOC Annotations/*.xml, YOLO images/ and "
        "labels/; pass other folder names of VOC and YOLO with --images and --annotations"
    )


def convert_boxes(
    source: Path,
    dest: Path,
    to: Layout,
    copy: bool = False,
    val: float | None = None,
    seed: int = 0,
    names: FolderNames = _USUAL,
) -> ConversionReport:
    """Convert a detection data set to another layout.

    Args:
        source: Folder in any of the three layouts.
        dest: Output folder; must be empty or not exist.
        to: Layout to write.
        copy: Copy images instead of linking them.
        val: Fraction of the images that become the val split, stratified by class; only for a source with one split.
        seed: Seed of the random choice of val.
        names: Names of the source's subfolders if they are not the usual ones.

    Raises:
        FishnetError: The source is damaged; the message names the file and the problem.
        UsageError: `dest` is not empty, the source already has the layout, or `val` does not apply to it.
    """
    if val is not None and not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    kind = detect_layout(source, names)
    if kind == "coco" and names != _USUAL:
        raise UsageError(f"--images and --annotations are for VOC and YOLO folders; {source} is a COCO folder")
    if kind == to:
        raise UsageError(f"{source} already has the layout {to}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty; choose another folder")
    found = read_coco_boxes(source) if kind == "coco" else {"voc": read_voc, "yolo": read_yolo}[kind](source, names)
    if val is not None:
        _make_val(found, source, val, seed)
    found.notes += _ignored_note(found, to)
    place = _Placer(copy)
    {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[to](found, dest, place)
    return ConversionReport(
        dest,
        {split: len(pictures) for split, pictures in found.splits.items()},
        sum(len(picture.boxes) for pictures in found.splits.values() for picture in pictures)
        - (_ignored(found) if to == "yolo" else 0),
        found.notes + place.notes(),
    )


def _make_val(found: BoxSet, source: Path, val: float, seed: int) -> None:
    """Divide the only split of a data set into train and val."""
    if len(found.splits) != 1:
        raise UsageError(f"--val needs a source with one split; {source} has {', '.join(found.splits)}")
    (pictures,) = found.splits.values()
    chosen = stratify([frozenset(label for label, *_ in picture.boxes) for picture in pictures], val, seed)
    found.splits = {
        "train": [picture for index, picture in enumerate(pictures) if index not in chosen],
        "val": [picture for index, picture in enumerate(pictures) if index in chosen],
    }


class _Placer:
    """Places images in a new folder by hard link, or by copy."""

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
        """Return a note about images that were copied because links are impossible."""
        return (
            [f"{self.copied} images were copied, since links between these folders are impossible"]
            if self.copied
            else []
        )


def _ignored(found: BoxSet) -> int:
    return sum(sum(picture.ignored) for pictures in found.splits.values() for picture in pictures)


def _ignored_note(found: BoxSet, to: Layout) -> list[str]:
    """Return a note about how ignored objects are converted."""
    count = _ignored(found)
    fate = {
        "coco": "difficult objects are written with iscrowd 1: ignored in training and evaluation",
        "voc": "crowds are written with difficult 1: VOC has no other mark for ignored objects",
        "yolo": "crowds and difficult objects are left out: YOLO has no mark for ignored objects",
    }
    return [f"{count} {fate[to]}"] if count else []


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
    return stated in (shape.stored, shape.upright)


# COCO ----------------------------------------------------------------------------------------------------------------


def read_coco_boxes(root: Path) -> BoxSet:
    """Read all splits of a COCO folder."""
    found = BoxSet([], {})
    for path in sorted((root / "annotations").glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        file = read_coco(path)
        if file.problems:
            raise FishnetError(
                f"{path} has {len(file.problems)} problems: {summarise(file.problems)}. "
                f"`fishnet data check detection {root} --fix OUT.json` repairs what can be repaired"
            )
        if found.classes and file.classes != found.classes:
            raise FishnetError(f"{path} has other categories than the previous splits; make them equal")
        found.classes = file.classes
        folder = image_folder(root, split, file.file_names)
        pictures = []
        for index, name in enumerate(file.file_names):
            objects = file.objects(index)
            rows = zip(file.class_of[objects].tolist(), file.boxes[objects].tolist(), strict=True)
            boxes = [(file.classes[label], *box) for label, box in rows]
            size = int(file.widths[index]), int(file.heights[index])
            picture = Picture(folder / name, *size, boxes, file.crowd[objects].tolist())
            if not upright(picture, image_shape(picture.path)):
                stated = f"but {path.name} states {size[0]}x{size[1]}"
                raise FishnetError(
                    f"{picture.path} has {picture.width}x{picture.height} pixels, {stated}; "
                    f"`fishnet data check detection {root} --fix OUT.json` repairs the file"
                )
            pictures.append(picture)
        found.splits[split] = pictures
        if file.left_out:
            found.notes.append(f"{path.name}: {len(file.left_out)} boxes without area were left out")
        if (file.outlines.kind != 0).any():
            found.notes.append(f"{path.name}: masks were not converted")
        if file.keypoint_names:
            found.notes.append(f"{path.name}: keypoints were not converted")
    return found


def write_coco(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a COCO folder."""
    categories = [{"id": number, "name": name} for number, name in enumerate(found.classes, 1)]
    numbers = {name: number for number, name in enumerate(found.classes, 1)}
    for split, pictures in found.splits.items():
        images: list[ImageEntry] = []
        annotations: list[AnnotationEntry] = []
        for number, (name, picture) in enumerate(named(pictures), 1):
            place(picture.path, out / split / name)
            images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
            for (label, x, y, w, h), ignored in zip(picture.boxes, picture.ignored, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": numbers[label],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(ignored),
                        "segmentation": [],
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        atomic_write(out / "annotations" / f"instances_{split}.json", json.dumps(document, ensure_ascii=False))


def named(pictures: list[Picture]) -> Iterator[tuple[str, Picture]]:
    """Yield a file name for each picture that is unique in the split when folders are flattened."""
    seen: Counter[str] = Counter()
    for picture in pictures:
        name = picture.path.name
        seen[name] += 1
        if seen[name] > 1:
            name = f"{picture.path.stem}_{seen[name]}{picture.path.suffix}"
        yield name, picture


# Pascal VOC ----------------------------------------------------------------------------------------------------------


def read_voc(root: Path, names: FolderNames = _USUAL) -> BoxSet:
    """Read a VOC folder; without ImageSets all images belong to train."""
    annotations, images = root / (names.annotations or "Annotations"), root / (names.images or "JPEGImages")
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # lists per class (cat_train.txt) contain labels next to the names
    splits = {path.stem: read_lines(path) for path in lists if "_" not in path.stem}
    splits = {name: members for name, members in splits.items() if name != "trainval" or len(splits) == 1}
    if not splits:
        splits = {"train": [path.stem for path in sorted(annotations.glob("*.xml"))]}
    found = BoxSet([], {})
    other_size = 0
    for split, members in splits.items():
        read = [_read_voc_file(root, annotations / f"{name}.xml", images) for name in members]
        found.splits[split] = [picture for picture, _ in read]
        other_size += sum(not fits for _, fits in read)
    if other_size:
        found.notes.append(f"{other_size} files state a wrong <size>; the size of the image is used")
    present = {box[0] for pictures in found.splits.values() for picture in pictures for box in picture.boxes}
    listed = root / "classes.txt"
    stated = read_lines(listed) if listed.is_file() else []
    found.classes = stated if present <= set(stated) else sorted(present)
    return found


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
    name = tree.findtext("filename") or f"{path.stem}.jpg"
    shape = image_shape(images / name)
    picture = Picture(images / name, *_voc_size(tree, shape.upright))
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


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


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


# YOLO ----------------------------------------------------------------------------------------------------------------


def read_yolo(root: Path, names: FolderNames = _USUAL) -> BoxSet:
    """Read a YOLO folder with class names in data.yaml or classes.txt."""
    classes = _yolo_classes(root)
    found = BoxSet(classes, {})
    images = root / (names.images or "images")
    folders = sorted(path for path in images.iterdir() if path.is_dir()) or [images]
    for folder in folders:
        split = folder.name if folder != images else "train"
        labels = root / (names.annotations or "labels") / folder.relative_to(images)
        pictures = []
        for path in image_files(folder):
            picture = Picture(path, *image_shape(path).upright)
            _read_yolo_lines((labels / path.relative_to(folder)).with_suffix(".txt"), picture, classes)
            pictures.append(picture)
        found.splits[split] = pictures
    return found


def _yolo_classes(root: Path) -> list[str]:
    for name in ("data.yaml", "dataset.yaml"):
        if (root / name).is_file():
            try:
                names = (yaml.safe_load((root / name).read_text("utf-8")) or {}).get("names")
                names = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
            except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                text = " ".join(str(error).split())
                raise FishnetError(f"{root / name} is not valid YAML with `names` ({text})") from error
            if isinstance(names, list) and names:
                return [str(name) for name in names]
    if (root / "classes.txt").is_file():
        return read_lines(root / "classes.txt")
    raise FishnetError(f"{root} has no class names: add data.yaml with `names`, or classes.txt")


def _read_yolo_lines(path: Path, picture: Picture, classes: list[str]) -> None:
    """Add the boxes of a label file; an image without a file has no objects."""
    if not path.is_file():
        return
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
            if len(values) != 4 or not all(map(math.isfinite, values)) or not 0 <= label < len(classes):
                raise ValueError
        except ValueError:
            raise FishnetError(
                f"{path}, line {number}: expected a class below {len(classes)} and four numbers, not {line[:60]!r}"
            ) from None
        across, down, wide, high = values
        box = ((across - wide / 2) * picture.width, (down - high / 2) * picture.height)
        picture.boxes.append((classes[label], *box, wide * picture.width, high * picture.height))
        picture.ignored.append(False)


def write_yolo(found: BoxSet, out: Path, place: Callable[[Path, Path], None]) -> None:
    """Write a YOLO folder; ignored objects are left out."""
    numbers = {name: number for number, name in enumerate(found.classes)}
    for split, pictures in found.splits.items():
        for name, picture in named(pictures):
            place(picture.path, out / "images" / split / name)
            lines = []
            for (label, x, y, w, h), ignored in zip(picture.boxes, picture.ignored, strict=True):
                if not ignored:
                    centre = (x + w / 2) / picture.width, (y + h / 2) / picture.height
                    shares = *centre, w / picture.width, h / picture.height
                    lines.append(" ".join([str(numbers[label]), *(f"{share:.8g}" for share in shares)]))
            text = "\n".join(lines) + "\n" if lines else ""
            atomic_write((out / "labels" / split / name).with_suffix(".txt"), text)
    document: dict[str, object] = {split: f"images/{split}" for split in found.splits}
    document["names"] = dict(enumerate(found.classes))
    atomic_write(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
