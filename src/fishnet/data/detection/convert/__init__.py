"""Convert boxes between the COCO, Pascal VOC and YOLO layouts; images are linked, or copied if links are impossible.

- COCO: DIR/annotations/instances_<split>.json, images in DIR/<split>/
- VOC: DIR/Annotations/*.xml, DIR/JPEGImages/, DIR/ImageSets/Main/<split>.txt; corners are integer pixels from 1
- COCO as other tools export it, to read only: Roboflow, CVAT, Label Studio, and files such as DIR/train.json
- YOLO: DIR/images/<split>/, DIR/labels/<split>/*.txt (class, center and size relative to the image), DIR/data.yaml

Outlines of YOLO become polygons of COCO, and the reverse on request; VOC has boxes only. Keypoints are lost. Boxes are
always in pixels of the upright image, as viewers show it: if a file states the stored size of an image that its EXIF
orientation rotates, its boxes are rotated too.

Two layouts can mark objects that evaluation ignores, `iscrowd` in COCO and `difficult` in VOC, and each is converted to
the other: COCO's evaluation ignores detections inside a crowd (by intersection over the area of the detection), VOC's
ignores detections that match a difficult object.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fishnet.data.detection.coco import read_coco
from fishnet.data.detection.convert.boxes import USUAL, BoxSet, FolderNames, Layout
from fishnet.data.detection.convert.coco import read_coco_boxes, write_coco
from fishnet.data.detection.convert.exports import move_exports
from fishnet.data.detection.convert.voc import read_voc, write_voc
from fishnet.data.detection.convert.yolo import read_yolo, write_yolo, yolo_folders
from fishnet.data.detection.layouts import export_files, folder_of, other_layout, own_files
from fishnet.data.detection.split import split_coco
from fishnet.data.folders import Placer, check_root
from fishnet.data.stratify import stratify
from fishnet.errors import FishnetError, UsageError, counted


@dataclass
class ConversionReport:
    """Result of `convert_boxes`."""

    out: Path
    images: dict[str, int]
    boxes: int
    notes: list[str]

    def describe(self) -> str:
        """Describe the result as text."""
        counts = ", ".join(f"{split} {counted(count, 'image')}" for split, count in self.images.items())
        return "\n".join([f"{self.out}: {counts}, {counted(self.boxes, 'box')}", *self.notes])


def detect_layout(root: Path, names: FolderNames = USUAL) -> Layout:
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
    if yolo_folders(root, names):
        return "yolo"
    raise FishnetError(
        f"{root} has no known layout: COCO has annotations/instances_*.json, VOC Annotations/*.xml, YOLO images/ and "
        "labels/, at the top or in every split; pass other folder names of VOC and YOLO with --images and --annotations"
    )


def can_convert(root: Path) -> bool:
    """Whether a folder has boxes in one of the three layouts."""
    root = folder_of(root)
    return bool(own_files(root)) or (root / "Annotations").is_dir() or other_layout(root) is not None


def convert_data(
    source: Path,
    dest: Path,
    to: Layout = "coco",
    copy: bool = False,
    val: float | None = None,
    seed: int = 0,
    images: str | None = None,
    annotations: str | None = None,
    outlines: bool = False,
) -> ConversionReport:
    """Convert boxes and images to another layout; that of the source is detected.

    Outlines of YOLO become polygons of COCO.

    Args:
        source: Folder of the data set: COCO, also as other tools export it, Pascal VOC, or YOLO.
        dest: Output folder.
        to: Layout to write.
        copy: Copy images instead of linking them.
        val: Fraction of the images that become val, stratified by class; for a source with one split.
        seed: Seed of the random choice of val.
        images: Folder of the images in SOURCE, if it is not JPEGImages (VOC) or images (YOLO).
        annotations: Folder of the .xml or .txt files in SOURCE, if it is not Annotations (VOC) or labels (YOLO).
        outlines: Write COCO objects that consist of one polygon as outlines of YOLO instead of boxes (--to yolo).
    """
    return convert_boxes(source, dest, to, copy, val, seed, FolderNames(images, annotations), outlines)


def convert_boxes(
    source: Path,
    dest: Path,
    to: Layout,
    copy: bool = False,
    val: float | None = None,
    seed: int = 0,
    names: FolderNames = USUAL,
    outlines: bool = False,
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
        outlines: Write single polygons of COCO as outlines of YOLO.

    Raises:
        FishnetError: The source is damaged; the message names the file and the problem.
        UsageError: `dest` is not empty, the source already has the layout, or `val` does not apply to it.
    """
    source = folder_of(source)
    if val is not None and not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    if names == USUAL and export_files(source):
        return _move_exports(source, dest, to, copy, val, seed)
    kind = detect_layout(source, names)
    if kind == "coco" and names != USUAL:
        raise UsageError(f"--images and --annotations are for VOC and YOLO folders; {source} is a COCO folder")
    if kind == to:
        advice = f"; `fishnet train detection --data {source}` reads it as it is" if to == "coco" else ""
        raise UsageError(f"{source} already has the layout {to}{advice}")
    if outlines and (kind, to) != ("coco", "yolo"):
        raise UsageError("--outlines is for the conversion of COCO with --to yolo; outlines of YOLO are always kept")
    _check_empty(dest)
    found = _read(source, kind, names, outlines, polygons=to == "yolo")
    if val is not None:
        _make_val(found, source, val, seed)
    found.notes += _ignored_note(found, to)
    found.notes += _outline_note(found, kind, to)
    place = Placer(copy)
    {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[to](found, dest, place)
    return ConversionReport(
        dest,
        {split: len(pictures) for split, pictures in found.splits.items()},
        sum(len(picture.boxes) for pictures in found.splits.values() for picture in pictures)
        - (_ignored(found) if to == "yolo" else 0),
        found.notes + place.notes(),
    )


def _read(source: Path, kind: Layout, names: FolderNames, outlines: bool, polygons: bool) -> BoxSet:
    if kind == "coco":
        return read_coco_boxes(source, outlines, polygons)
    return read_voc(source, names) if kind == "voc" else read_yolo(source, names)


def _outline_note(found: BoxSet, kind: Layout, to: Layout) -> list[str]:
    """Return a note about the outlines of YOLO."""
    pictures = [picture for pictures in found.splits.values() for picture in pictures]
    outlines = sum(len(picture.outlines) for picture in pictures)
    if kind != "yolo" or not outlines:
        return []
    if to == "voc":
        return [f"{counted(outlines, 'outline')} reduced to the box around: VOC has boxes only"]
    boxes = sum(len(picture.boxes) for picture in pictures) - outlines
    rest = f"; {counted(boxes, 'object')} with a box only, excluded from mask training" if boxes else ""
    return [f"{counted(outlines, 'outline')} written as polygons, for detectors with masks such as mask_rcnn{rest}"]


def _check_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty; choose another folder")


def _move_exports(source: Path, dest: Path, to: Layout, copy: bool, val: float | None, seed: int) -> ConversionReport:
    """Convert COCO annotations that are not where the library reads them."""
    if to != "coco":
        raise UsageError(
            f"{source} has COCO annotations of another tool; convert it with --to coco first, then that to {to}"
        )
    splits = [split for split, _ in export_files(source)]
    if val is not None and len(splits) != 1:
        raise UsageError(f"--val needs a source with one split; {source} has {', '.join(splits)}")
    _check_empty(dest)
    place = Placer(copy)
    found = move_exports(source, dest, place)
    if val is not None:
        split_coco(dest, val, seed)
        splits = ["train", "val"]
    files = {split: read_coco(dest / "annotations" / f"instances_{split}.json") for split in splits}
    images, boxes = {split: len(file) for split, file in files.items()}, sum(len(file.boxes) for file in files.values())
    return ConversionReport(dest, images, boxes, found.notes + place.notes())


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


def _ignored(found: BoxSet) -> int:
    return sum(sum(picture.ignored) for pictures in found.splits.values() for picture in pictures)


def _ignored_note(found: BoxSet, to: Layout) -> list[str]:
    """Return a note about how ignored objects are converted."""
    count = _ignored(found)
    fate = {
        "coco": "difficult objects are written with iscrowd 1: ignored in training and evaluation",
        "voc": "crowds are written with difficult 1: VOC has no other mark for ignored objects",
        "yolo": "crowds and difficult objects are excluded: YOLO cannot mark ignored objects",
    }
    return [f"{count} {fate[to]}"] if count else []
