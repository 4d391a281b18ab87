"""Boxes from and to COCO folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fishnet.data.detection.coco import NONE, POLYGONS, CocoFile, read_coco, summarize
from fishnet.data.detection.convert.boxes import BoxSet, Picture, named, polygon_area, upright
from fishnet.data.detection.types import AnnotationEntry, ImageEntry
from fishnet.data.folders import image_folder
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError, counted, quoted
from fishnet.files import atomic_write


def read_coco_boxes(root: Path, outlines: bool = False, polygons: bool = False) -> BoxSet:
    """Read all splits of a COCO folder.

    Args:
        root: Data folder.
        outlines: Read the outlines of objects with exactly one polygon.
        polygons: Whether the layout that is written has polygons, so that a note can recommend `--outlines`.
    """
    found = BoxSet([], {})
    for path in sorted((root / "annotations").glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        file = read_coco(path)
        if file.problems:
            raise FishnetError(
                f"{path} has {counted(len(file.problems), 'problem')}: {summarize(file.problems)}. "
                f"`fishnet data check detection {quoted(root)} --fix OUT.json` repairs what can be repaired"
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
            picture.outlines = _single_polygons(file, objects.tolist()) if outlines else {}
            if not upright(picture, image_shape(picture.path)):
                stated = f"but {path.name} states {size[0]}x{size[1]}"
                raise FishnetError(
                    f"{picture.path} has {picture.width}x{picture.height} pixels, {stated}; "
                    f"`fishnet data check detection {quoted(root)} --fix OUT.json` repairs the file"
                )
            pictures.append(picture)
        found.splits[split] = pictures
        if file.left_out:
            found.notes.append(f"{path.name}: {len(file.left_out)} boxes without area were excluded")
        if outlines:
            kept = sum(len(picture.outlines) for picture in pictures)
            rest = counted(len(file.boxes) - kept, "object")
            note = f"{counted(kept, 'outline')} written; {rest} without exactly one polygon written as box"
            found.notes.append(f"{path.name}: {note}")
        elif (file.outlines.kind != NONE).any():
            found.notes.append(f"{path.name}: masks were not converted{'; --outlines writes polygons' * polygons}")
        if file.keypoint_names:
            found.notes.append(f"{path.name}: keypoints were not converted")
    return found


def _single_polygons(file: CocoFile, objects: list[int]) -> dict[int, list[float]]:
    """Return the polygon of each object of an image that consists of one, by its position in `objects`."""
    found: dict[int, list[float]] = {}
    for place, index in enumerate(objects):
        if file.outlines.kind[index] == POLYGONS and len(polygons := file.outlines.polygons(index)) == 1:
            found[place] = polygons[0].tolist()
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
            for index, (label, x, y, w, h) in enumerate(picture.boxes):
                outline = picture.outlines.get(index)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": numbers[label],
                        "bbox": [x, y, w, h],
                        "area": w * h if outline is None else polygon_area(outline),
                        "iscrowd": int(picture.ignored[index]),
                        "segmentation": [] if outline is None else [outline],
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        atomic_write(out / "annotations" / f"instances_{split}.json", json.dumps(document, ensure_ascii=False))
