"""Folders that Roboflow exports in the COCO format: images and `_annotations.coco.json` side by side, in every split.

The annotation files are those of COCO and keep their outlines; they are only moved to where this library reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fishnet.data.detection.convert.boxes import BoxSet
from fishnet.data.detection.types import CategoryEntry
from fishnet.errors import FishnetError
from fishnet.files import Json, atomic_write

FILE = "_annotations.coco.json"
SPLITS = {"valid": "val"}
"""Splits with another name here."""


def roboflow_files(root: Path) -> dict[str, Path]:
    """Return the annotation file of each split by the name of the split; empty if the folder has another layout."""
    found = {path.parent.name: path for path in sorted(root.glob(f"*/{FILE}"))}
    return {SPLITS.get(split, split): path for split, path in found.items()}


def move_roboflow(root: Path, out: Path, place: Callable[[Path, Path], None]) -> BoxSet:
    """Convert a Roboflow COCO folder to a COCO folder; return images per split and notes, without boxes.

    Args:
        root: Folder with the splits.
        out: Folder to write.
        place: Function that links or copies an image.

    Raises:
        FishnetError: A file is damaged or names an image that does not exist.
    """
    documents = {split: _read(path) for split, path in roboflow_files(root).items()}
    superfluous = _superfluous(list(documents.values()))
    found = BoxSet([], {})
    for split, document in documents.items():
        folder = roboflow_files(root)[split].parent
        for image in document["images"]:
            name = str(image.get("file_name"))
            if not (folder / name).is_file():
                raise FishnetError(f"{folder / FILE} names {name}, but there is no such image beside it")
            place(folder / name, out / split / name)
        kept = [one for one in document["categories"] if one["id"] not in superfluous]
        text = json.dumps({**document, "categories": kept}, ensure_ascii=False)
        atomic_write(out / "annotations" / f"instances_{split}.json", text)
        found.classes = [str(one["name"]) for one in kept]
    if superfluous:
        found.notes.append("the super-category without objects that Roboflow adds was excluded")
    return found


def _read(path: Path) -> Json:
    try:
        document = json.loads(path.read_text("utf-8"))
        for key in ("images", "annotations", "categories"):
            if not all(isinstance(entry, dict) for entry in document[key]):
                raise TypeError(f"{key} must be a list of objects")
        return document
    except (ValueError, KeyError, TypeError) as error:
        raise FishnetError(f"{path} is not a COCO annotation file ({type(error).__name__}: {error})") from None


def _superfluous(documents: list[Json]) -> set[int]:
    """Return the ids of categories of the supercategory "none" that others name as theirs, if they have no objects."""
    used = {one.get("category_id") for document in documents for one in document["annotations"]}
    categories: list[CategoryEntry] = [one for document in documents for one in document["categories"]]
    parents = {one.get("supercategory") for one in categories}
    return {
        one["id"]
        for one in categories
        if one.get("supercategory") == "none" and one["name"] in parents and one["id"] not in used
    }
