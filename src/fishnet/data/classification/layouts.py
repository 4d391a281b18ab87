"""Which splits a folder of classification data has, and what each of its layouts lists.

Four layouts are known: class folders, a `labels.csv` of several labels per image, a COCO file with a label per image,
and WebDataset shards. This module reads lists only, no image; it judges no more than it needs to read on.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fishnet.data.classification.shards import ShardIndex, index_shards, shard_paths
from fishnet.data.folders import check_root, image_files, subfolders
from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError, did_you_mean

LAYOUTS = (
    "DIR/<split>/<class>/*.jpg, DIR/<split>/labels.csv, DIR/annotations/instances_<split>.json or DIR/<split>-*.tar"
)

_STANDARD = re.compile(r"(train|val|test)(\d{4})?")
_NOT_CLASSES = {"images", "labels"}


@dataclass
class Listing:
    """Images and labels of one split, in a fixed order."""

    kind: Literal["folders", "list", "coco", "shards"]
    place: Path
    """Folder or file that the list comes from, for messages."""
    names: list[str]
    """Path of every image below the data folder; for shards `<shard>.tar/<member>`."""
    targets: list[Any]
    """Class index of every image; for a list of several labels a tuple of indices."""
    classes: list[str]
    shards: ShardIndex | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.kind == "list"

    def read(self, root: Path, index: int) -> bytes:
        """Return the bytes of one image file; OSError where that fails."""
        return (root / self.names[index]).read_bytes() if self.shards is None else self.shards.read(index)

    @property
    def complete(self) -> bool:
        """Whether `classes` is the whole list of the split, and not just the labels that occur in it."""
        return self.kind in ("folders", "coco")


def available_splits(root: Path) -> list[str]:
    """Return the names of the splits in a data folder: train, val, test first, others by name.

    Raises:
        FishnetError: The folder is missing, a file, or empty.
    """
    check_root(root, LAYOUTS)
    found = {path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json")}
    found |= {path.name.partition("-")[0] for path in root.glob("*-*.tar")}
    for folder in subfolders(root):
        named = _STANDARD.fullmatch(folder.name) or (folder / "labels.csv").is_file()
        if folder.name != "annotations" and (named or _holds_classes(folder)):
            found.add(folder.name)
    order = {"train": 0, "val": 1, "test": 2}
    return sorted(found, key=lambda name: (order.get(re.sub(r"\d{4}$", "", name), 3), name))


def resolve_split(root: Path, split: str) -> str:
    """Return the name of a split as the folder spells it: `train` finds `train2017` where there is no `train`.

    Raises:
        FishnetError: There is no such split; lists those that exist and suggests what to do.
    """
    splits = available_splits(root)
    dated = [name for name in splits if re.fullmatch(re.escape(split) + r"\d{4}", name)]
    if split in splits:
        return split
    if len(dated) == 1:
        return dated[0]
    if not splits and any(next(image_files(folder), None) for folder in subfolders(root)):
        raise FishnetError(
            f"{root} has no split {split!r}: its class folders are not in train and val yet; "
            f"`fishnet data split {root}` makes both"
        )
    if not splits:
        raise FishnetError(f"{root} holds no data of a known layout; expected {LAYOUTS}")
    advice = did_you_mean(split, splits)
    if split == "val" and "train" in splits:
        advice += f" `fishnet data split {root}` makes a val from train."
    raise FishnetError(f"{root} has no split {split!r}, it has {', '.join(splits)}.{advice}")


def list_split(root: Path, split: str) -> Listing:
    """Return what a split (its exact name) holds; an empty name takes the class folders of `root` itself.

    Raises:
        FishnetError: The layout is none of those known, or a list is damaged; names the file and what to mend.
    """
    folder = root / split
    if split and (folder / "labels.csv").is_file():
        return _list_csv(root, split)
    annotations = root / "annotations" / f"instances_{split}.json"
    document = _load_json(annotations) if split and annotations.is_file() else {}
    if "labels" in document:
        return _list_coco(root, split, annotations, document)
    if split and (paths := shard_paths(root, split)):
        return _list_shards(root, paths)
    classes = [path.name for path in subfolders(folder)] if folder.is_dir() else []
    if document and set(classes) <= _NOT_CLASSES:
        raise FishnetError(
            f"{annotations} has no `labels` list and no `label` per image: it tells boxes, not the class of an image; "
            "add both, or train detection"
        )
    if "images" in classes and set(classes) <= _NOT_CLASSES:
        raise FishnetError(f"{folder} holds images without classes (the segmentation layout); expected {LAYOUTS}")
    if not classes:
        raise FishnetError(f"the split {folder} has no classes: put its images in {folder}/<class>/")
    names, targets = [], []
    for number, name in enumerate(classes):
        found = [path.as_posix() for path in image_files(folder / name, root)]
        names += found
        targets += [number] * len(found)
    return Listing("folders", folder, names, targets, classes)


def _holds_classes(folder: Path) -> bool:
    """Tell a split of a free name from a class folder that has images of its own beside subfolders."""
    directly = any(path.suffix.lower() in IMAGE_EXTENSIONS for path in folder.iterdir() if path.is_file())
    return bool(subfolders(folder)) and not directly


def _list_csv(root: Path, split: str) -> Listing:
    path = root / split / "labels.csv"
    rows: dict[str, list[str]] = {}
    for number, file, labels in read_label_rows(path):
        if file in rows:
            raise FishnetError(f"{path}, line {number}: {file} is listed twice; join its labels by |")
        rows[file] = labels
    present = {label for labels in rows.values() for label in labels}
    classes = declared_classes(root) or sorted(present)
    if unknown := sorted(present - set(classes)):
        raise FishnetError(f"{path} uses labels that {root / 'classes.json'} does not list: {', '.join(unknown[:10])}")
    numbers = {name: number for number, name in enumerate(classes)}
    targets = [tuple(sorted({numbers[label] for label in labels})) for labels in rows.values()]
    return Listing("list", path, [(Path(split) / file).as_posix() for file in rows], targets, classes)


def read_label_rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line number, file and labels of every row of a `labels.csv`; FishnetError where it is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "labels"} <= set(reader.fieldnames or ()):
                raise FishnetError(f"{path} must begin with the line `file,labels`, not {reader.fieldnames}")
            for row in reader:
                if not row["file"] or row["labels"] is None:
                    raise FishnetError(f"{path}, line {reader.line_num}: expected a file and its labels")
                yield reader.line_num, row["file"], [part.strip() for part in row["labels"].split("|") if part.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FishnetError(f"{path} is no CSV file in UTF-8 ({error}); write it again") from error


def _list_coco(root: Path, split: str, path: Path, document: dict[str, Any]) -> Listing:
    classes, images = document["labels"], document.get("images")
    _check_classes(classes, path)
    if not isinstance(images, list) or not all(
        isinstance(i, dict) and isinstance(i.get("file_name"), str) for i in images
    ):
        raise FishnetError(f"{path}: `images` must be a list of objects with a `file_name`")
    targets = [image.get("label") for image in images]
    valid = [isinstance(target, int) and 0 <= target < len(classes) for target in targets]
    if not all(valid):
        first = images[valid.index(False)]
        raise FishnetError(
            f"{path}: {valid.count(False)} images have no `label` that is an index into the {len(classes)} `labels`, "
            f"the first is {first['file_name']} ({first.get('label')!r})"
        )
    places = [Path(split), Path(split) / "images", Path()]  # as the region level looks for them
    folder = next((place for place in places if images and (root / place / images[0]["file_name"]).exists()), places[1])
    names = [(folder / image["file_name"]).as_posix() for image in images]
    return Listing("coco", path, names, targets, classes)


def _list_shards(root: Path, paths: list[Path]) -> Listing:
    shards = index_shards(paths)
    place = root / f"{paths[0].name.partition('-')[0]}-*.tar"
    classes = declared_classes(root)
    numbers = {name: number for number, name in enumerate(classes or ())}
    if all(label.isdecimal() for label in shards.labels) and not set(shards.labels) & set(numbers):
        targets = [int(label) for label in shards.labels]
        if classes and max(targets) >= len(classes):
            raise FishnetError(f"{place} has the class {max(targets)}, {root / 'classes.json'} lists {len(classes)}")
        classes = classes or [str(number) for number in range(max(targets) + 1)]
        return Listing("shards", place, shards.names, targets, classes, shards)
    classes = classes or sorted(set(shards.labels))
    numbers = {name: number for number, name in enumerate(classes)}
    for name, label in zip(shards.names, shards.labels, strict=True):
        if label not in numbers or not label:
            raise FishnetError(f"{root / name}: the label {label!r} is no class that {root / 'classes.json'} lists")
    return Listing("shards", place, shards.names, [numbers[label] for label in shards.labels], classes, shards)


def declared_classes(root: Path) -> list[str] | None:
    """Return the class list of `root/classes.json`, or nothing where there is none (or one of a segmentation set)."""
    path = root / "classes.json"
    if not path.is_file():
        return None
    document = _load_json(path, dict | list)
    if isinstance(document, dict):
        if "ignore_index" in document:
            return None
        document = document.get("classes")
    _check_classes(document, path)
    return document


def _check_classes(classes: Any, path: Path) -> None:
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise FishnetError(f"{path}: the class list must be a list of names")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise FishnetError(f"{path} lists classes twice: {', '.join(twice[:10])}")


def _load_json(path: Path, kind: Any = dict) -> Any:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise FishnetError(f"{path} is no valid JSON ({error}); write it again") from error
    if not isinstance(document, kind):
        raise FishnetError(f"{path} has another structure than expected; see docs/data-formats.md")
    return document
