"""Recognize layouts of boxes other than the library's own, and name the command that converts them.

- YOLO: images/<split> and labels/<split>/*.txt, or <split>/images and <split>/labels
- Pascal VOC: Annotations/*.xml
- COCO annotation files in other places or with other names, as Roboflow, CVAT and Label Studio export them
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from fishnet.data.folders import all_files, free_name, subfolders
from fishnet.errors import FishnetError

ROBOFLOW = "_annotations.coco.json"
YAML = (".yaml", ".yml")
CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt")
"""Files with the class names of a YOLO data set."""
_OWN = re.compile(r"instances_(train|val|test)(\d{4})?")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|test)(?:id|idation|ing)?(?:\d{4})?(?:$|[^a-z])")
_MOST_FILES = 50
"""A folder with more JSON files than that has one per image, which is not the format of COCO."""


def folder_of(source: Path) -> Path:
    """Return the folder of a data set that is named by its data.yaml, as YOLO tools do; any other path unchanged."""
    return source.parent if source.suffix in YAML and source.is_file() else source


def own_files(root: Path) -> list[Path]:
    """Return the annotation files in the library's own layout: annotations/instances_<split>.json, also train2017."""
    return [path for path in sorted(root.glob("annotations/instances_*.json")) if _OWN.fullmatch(path.stem)]


def split_folders(root: Path, images: str = "images", labels: str = "labels") -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of labels of every split; empty if a folder has no such layout.

    These are images/<split> and labels/<split> (ultralytics), <split>/images and <split>/labels (Roboflow), or images
    and labels without splits.
    """
    if (root / images).is_dir() and (root / labels).is_dir():
        found = {path.name: (path, root / labels / path.name) for path in subfolders(root / images)}
        return found or {"train": (root / images, root / labels)}
    splits = [path for path in subfolders(root) if (path / images).is_dir() and (path / labels).is_dir()]
    return {path.name: (path / images, path / labels) for path in splits}


def is_yolo(root: Path) -> bool:
    """Return whether a folder has label files of YOLO: text files in the folders of labels."""
    if not root.is_dir() or not ((root / "images").is_dir() or any((root / name).is_file() for name in CLASS_FILES)):
        return False  # a folder that contains data sets
    return any(_has(labels, ".txt") for _, labels in split_folders(root).values())


def export_files(root: Path) -> list[tuple[str, Path]]:
    """Return split and path of the COCO annotation files of a folder that has none in the library's own layout.

    A single file of unknown split is `train`.
    """
    if not root.is_dir() or own_files(root):
        return []
    paths = [path for folder in (root, *subfolders(root)) for path in _few(folder.glob("*.json"))]
    files = [path for path in paths if path.name == ROBOFLOW or path.stem.startswith("instances_") or _is_coco(path)]
    known = [(_split_of(path, root), path) for path in files]
    if len(known) == 1:
        return [(known[0][0] or "train", known[0][1])]
    return [(split or path.stem.removeprefix("instances_"), path) for split, path in known]


def _few(paths: Iterable[Path]) -> list[Path]:
    found = sorted(paths)
    return found if len(found) <= _MOST_FILES else []


def _has(folder: Path, suffix: str) -> bool:
    return folder.is_dir() and any(path.suffix.lower() == suffix for path in all_files(folder))


def _is_coco(path: Path) -> bool:
    """Return whether a file has the three lists of COCO, and boxes."""
    try:
        document = json.loads(path.read_bytes())
        lists = [document[name] for name in ("images", "annotations", "categories")]
        return all(isinstance(one, list) for one in lists) and all("bbox" in one for one in lists[1][:1])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def _split_of(path: Path, root: Path) -> str | None:
    """Return the split that the name of a file, or of its folder, contains; None if neither does."""
    for text in (path.stem, path.parent.name if path.parent != root else ""):
        if match := _SPLIT.search(text.lower()):
            return match[1]
    return None


def other_layout(root: Path) -> str | None:
    """Return in words which layout a folder has that `fishnet data convert` reads; None if it has none."""
    root = folder_of(root)
    if not root.is_dir():
        return None
    if exports := export_files(root):
        return f"COCO annotations in another place ({', '.join(str(path.relative_to(root)) for _, path in exports)})"
    if _has(root / "Annotations", ".xml"):
        return "the layout of VOC"
    return "the layout of YOLO" if is_yolo(root) else None


def needs_val(root: Path) -> bool:
    """Return whether a folder in another layout has one split only, so that its conversion has to create val."""
    root = folder_of(root)
    if exports := export_files(root):
        return len(exports) == 1
    if (root / "Annotations").is_dir():
        lists = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt") if "_" not in path.stem}
        return len(lists - {"trainval"}) < 2
    return len(split_folders(root)) == 1


def conversion(root: Path) -> str:
    """Return the command that converts a folder to the library's own layout."""
    folder = folder_of(root)
    val = " --val 0.2" if needs_val(root) else ""
    return f"`fishnet data convert {shlex.quote(str(root))} {shlex.quote(str(free_name(folder, 'coco')))}{val}`"


def explain_layout(root: Path) -> str | None:
    """Return which other layout a folder has, and the command that converts it; None: none that is known."""
    if what := other_layout(root):
        return f"{root} has {what}; {conversion(root)} writes the layout of this library"
    return None


def _above(root: Path) -> str | None:
    """Return a question for the data folder if a path is a folder in it."""
    above = root.absolute().parent
    name = root.absolute().name
    is_part = name in ("annotations", "Annotations", "JPEGImages", "images", "labels") or _SPLIT.fullmatch(name.lower())
    if own_files(above) or (is_part and other_layout(above)):
        return f"{root} is a part of a data set; did you mean --data {root.parent}?"
    return None


def _below(root: Path) -> str | None:
    """Return a question for the data folder if a path is the folder above it."""
    found = [folder for folder in subfolders(root) if own_files(folder) or other_layout(folder)]
    return f"{root} has no annotations; did you mean --data {found[0]}?" if len(found) == 1 else None


def require_own_layout(root: Path) -> None:
    """Raise FishnetError, with the command to type, if a path is not in the library's own layout but in another."""
    if not root.exists() or own_files(root):
        return
    if text := explain_layout(root) if root.is_file() else _above(root) or explain_layout(root) or _below(root):
        raise FishnetError(text)
