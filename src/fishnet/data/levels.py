"""Labels of an image on up to three levels, and the folder layout that contains them all.

The layout is that of detection (COCO) and segmentation in one folder, with a class per image in the COCO file:

- DIR/<split>/images/*, DIR/<split>/labels/*.png, DIR/classes.json
- DIR/annotations/instances_<split>.json, with the top-level list `labels` and a `label` per image, an index into it

An image may lack any level: without `label` it has no class, without PNG no label map. An image of the COCO file
without annotations contains no objects; `annotated_category_ids` of an image lists the categories that were annotated
in it, so that an empty list means that no objects were annotated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from fishnet.data.run_lengths import RunLengths, area, counts_text
from fishnet.errors import FishnetError, UsageError, quoted
from fishnet.files import Json, json_text, write_json

Level = Literal["image", "region", "pixel"]
LEVELS: tuple[Level, ...] = ("image", "region", "pixel")
ANNOTATED: Final = "annotated_category_ids"
"""Key of an image in a COCO file: ids of the categories that were annotated in it; without it, all."""
IGNORE = 255


@dataclass
class ObjectLabels:
    """N objects of an image; N may be 0."""

    classes: np.ndarray
    """Class indices, int64 (N,)."""
    boxes: np.ndarray
    """x, y, width, height in pixels, float64 (N, 4)."""
    crowd: np.ndarray
    """Whether an object is a crowd, bool (N,)."""
    masks: list[RunLengths] | None = None
    """Outline of each object; None if objects have only boxes."""
    outlined: np.ndarray | None = None
    """Which objects have an outline, bool (N,), where some do not: their mask is the box; None: all."""
    annotated: tuple[int, ...] | None = None
    """Indices of the classes that were annotated; None if all were."""


@dataclass
class ImageLabels:
    """What is known of an image; None marks an unlabeled level."""

    label: int | None = None
    """Class index."""
    objects: ObjectLabels | None = None
    label_map: np.ndarray | None = None
    """Class index of each pixel (H, W); `ignore_index` where it is not known."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels that are labeled."""
        known = (self.label is not None, self.objects is not None, self.label_map is not None)
        return tuple(level for level, is_known in zip(LEVELS, known, strict=True) if is_known)


@dataclass
class LevelClasses:
    """Class names of each level; a level that no image has may have none."""

    image: list[str]
    region: list[str]
    pixel: list[str]
    ignore_index: int = IGNORE

    def of(self, level: Level) -> list[str]:
        """Return the class names of a level."""
        names: list[str] = getattr(self, level)
        return names


class LayoutWriter:
    """Writes images with their labels as a multitask folder.

    Images and label maps are written by `add`, which threads may call for different images; `finish` writes the lists,
    and thereby makes the folder complete.

    Args:
        root: Folder to write.
        classes: Class names of each level.
        description: Source of the images, for the COCO files.
    """

    def __init__(self, root: Path, classes: LevelClasses, description: str = "") -> None:
        if len(classes.pixel) > IGNORE:
            raise FishnetError(f"label maps are written with at most {IGNORE} classes, not {len(classes.pixel)}")
        self.root, self.classes, self.description = root, classes, description
        self._entries: dict[str, dict[str, tuple[Json, list[Json]]]] = {}

    def add(self, split: str, name: str, image: Image.Image | None, size: tuple[int, int], labels: ImageLabels) -> None:
        """Add an image.

        Args:
            split: Name of the split.
            name: File name of the image below DIR/<split>/images/, unique without its extension.
            image: Image to write; None if the file is there already.
            size: Width and height in pixels.
            labels: What is known of the image.
        """
        place = self.root / split / "images" / name
        if image is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place, quality=92, subsampling=0)  # options of JPEG; other formats ignore them
        if labels.label_map is not None:
            target = self.root / split / "labels" / Path(name).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.label_map.astype(np.uint8)).save(target)
        entry: Json = {"file_name": name, "width": size[0], "height": size[1]}
        if labels.label is not None:
            entry["label"] = int(labels.label)
        if labels.objects is None:
            entry[ANNOTATED] = []
        elif labels.objects.annotated is not None:
            entry[ANNOTATED] = [number + 1 for number in labels.objects.annotated]
        found = [] if labels.objects is None else _annotations(labels.objects)
        self._entries.setdefault(split, {})[name] = entry, found

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {split: len(entries) for split, entries in self._entries.items()}

    def finish(self) -> None:
        """Write classes.json and the COCO file of each split, with images in the order of their names."""
        write_json(
            self.root / "classes.json", {"classes": self.classes.pixel, "ignore_index": self.classes.ignore_index}
        )
        for split, entries in self._entries.items():
            images: list[Json] = []
            annotations: list[Json] = []
            for number, name in enumerate(sorted(entries), 1):
                entry, found = entries[name]
                images.append({"id": number, **entry})
                annotations += [
                    {"id": len(annotations) + place, "image_id": number, **one} for place, one in enumerate(found, 1)
                ]
            document = {
                "info": {"description": self.description},
                "labels": self.classes.image,
                "images": images,
                "annotations": annotations,
                "categories": [{"id": number, "name": name} for number, name in enumerate(self.classes.region, 1)],
            }
            write_json(self.root / "annotations" / f"instances_{split}.json", document, indent=None)


def has_boxes_and_maps(root: Path) -> bool:
    """Whether a folder has both annotation files of COCO and label maps, which belong to the same images."""
    maps = (root / "classes.json").is_file() and any(root.glob("*/labels"))
    return maps and any((root / "annotations").glob("instances_*.json"))


def refuse_partial_split(root: Path, task: str) -> None:
    """Reject a split for a single task if labels of other levels would not be moved.

    Args:
        root: Data folder.
        task: Name of the single task.

    Raises:
        UsageError: The folder has boxes and label maps.
    """
    if has_boxes_and_maps(root):
        raise UsageError(
            f"{root} has boxes and label maps of the same images, and a split for {task} would divide one of them "
            "only; "
            f"`fishnet data split {quoted(root)} --task multitask` divides both"
        )


def _annotations(objects: ObjectLabels) -> list[Json]:
    """Return objects as annotations of a COCO file, without ids."""
    found: list[Json] = []
    for place, (label, box, crowd) in enumerate(
        zip(objects.classes.tolist(), objects.boxes.tolist(), objects.crowd.tolist(), strict=True)
    ):
        entry: Json = {"category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        if objects.masks is not None and (objects.outlined is None or objects.outlined[place]):
            run = objects.masks[place]
            entry["area"] = area(run)
            entry["segmentation"] = {"size": list(run["size"]), "counts": counts_text(run)}
        found.append(entry)
    return found


def claim_folder(root: Path, marker: str, settings: Json, replaceable: Sequence[str]) -> None:
    """Prepare a folder for a generated data set; one that the same function prepared before is emptied.

    Args:
        root: Folder; must not exist, be empty, or contain the marker.
        marker: File name that marks the folder as generated.
        settings: What the marker file contains.
        replaceable: Names of files and folders of the data set, which are removed.

    Raises:
        UsageError: The folder contains something else.
    """
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / marker).is_file())):
        raise UsageError(f"{root} is not empty; choose another folder")
    for name in replaceable:
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    (root / marker).write_text(json_text(settings) + "\n", "utf-8")
