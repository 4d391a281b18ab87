"""Boxes from and to COCO folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fishnet.data.detection.coco import read_coco, summarize
from fishnet.data.detection.convert.boxes import BoxSet, Picture, named, upright
from fishnet.data.detection.dataset import image_folder
from fishnet.data.detection.types import AnnotationEntry, ImageEntry
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError, counted
from fishnet.files import atomic_write


def read_coco_boxes(root: Path) -> BoxSet:
    """Read all splits of a COCO folder."""
    found = BoxSet([], {})
    for path in sorted((root / "annotations").glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        file = read_coco(path)
        if file.problems:
            raise FishnetError(
                f"{path} has {counted(len(file.problems), 'problems')}: {summarize(file.problems)}. "
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
            found.notes.append(f"{path.name}: {len(file.left_out)} boxes without area were excluded")
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
