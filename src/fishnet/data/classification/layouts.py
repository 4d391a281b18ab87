"""Find the splits of a classification data folder and list their images and labels.

Four layouts are supported: class folders, a `labels.csv` with several labels per image, a COCO file with a label per
image, and WebDataset shards. Only lists are read here, no images, and they are checked only as far as reading needs it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from fishnet.data.classification.shards import ShardIndex, index_shards, shard_paths
from fishnet.data.folders import check_root, image_files, image_folder, subfolders
from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError, counted, did_you_mean, quoted

LAYOUTS = (
    "DIR/<split>/<class>/*.jpg, DIR/<split>/labels.csv, DIR/annotations/instances_<split>.json or DIR/<split>-*.tar"
)

_STANDARD = re.compile(r"(train|val|test)(\d{4})?")
MOST_CLASSES = 1_000_000
"""Largest class index of shards without a list of classes."""
_NOT_CLASSES = {"images", "labels"}


Target = int | tuple[int, ...]
"""Truth of an image: a class index, or a tuple of class indices where an image may have several labels."""


@dataclass
class Listing:
    """Images and labels of one split, in a fixed order."""

    kind: Literal["folders", "list", "coco", "shards"]
    place: Path
    """Source folder or file of the list, for messages."""
    names: list[str]
    """Path of each image relative to the data folder; `<shard>.tar/<member>` for shards."""
    targets: Sequence[Target]
    classes: list[str]
    shards: ShardIndex | None = None
    unlabeled: list[str] = field(default_factory=list)
    """Images of a COCO file without a label, which are not in `names`."""

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """Class indices of each image; exactly one per image unless `multi_label`."""
        return [target if isinstance(target, tuple) else (target,) for target in self.targets]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.kind == "list"

    def read(self, root: Path, index: int) -> bytes:
        """Return the bytes of one image file; raises OSError if it cannot be read."""
        return (root / self.names[index]).read_bytes() if self.shards is None else self.shards.read(index)

    @property
    def complete(self) -> bool:
        """Whether `classes` is the declared class list of the split, not only the labels that occur in it."""
        return self.kind in ("folders", "coco")


def available_splits(root: Path) -> list[str]:
    """Return the names of the splits in a data folder: train, val and test first, then others by name.

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


def is_split(root: Path) -> bool:
    """Return whether a folder without splits is itself a split of the data set above it, judged by its name."""
    return _STANDARD.fullmatch(root.absolute().name) is not None


def resolve_split(root: Path, split: str) -> str:
    """Return the exact name of a split: `train` resolves to `train2017` if there is no `train`.

    Raises:
        FishnetError: The split does not exist; lists the existing ones and suggests what to do.
    """
    splits = available_splits(root)
    dated = [name for name in splits if re.fullmatch(re.escape(split) + r"\d{4}", name)]
    if split in splits:
        return split
    if len(dated) == 1:
        return dated[0]
    if split == "val" and (other := [name for name in ("valid", "validation") if name in splits]):
        return other[0]
    if not splits and is_split(root):
        raise FishnetError(f"{root} is one split of a data set; did you mean --data {root.parent}?")
    if not splits and (text := explain_classes(root)):
        raise FishnetError(text)
    if not splits and any(next(image_files(folder), None) for folder in subfolders(root)):
        raise FishnetError(
            f"{root} has no split {split!r}: its class folders are not divided into train and val yet; "
            f"`fishnet data split {quoted(root)}` creates both"
        )
    if not splits:
        raise FishnetError(f"{root} contains no data in a known layout; expected {LAYOUTS}")
    advice = did_you_mean(split, splits)
    if split == "val" and "train" in splits:
        advice += f" `fishnet data split {quoted(root)}` creates val from train."
    raise FishnetError(f"{root} has no split {split!r}; available: {', '.join(splits)}.{advice}")


def explain_classes(root: Path) -> str | None:
    """Return why a folder without splits does not have two classes, and what to do; None if it has, or no images."""
    folders = subfolders(root)
    filled = [folder for folder in folders if next(image_files(folder), None) is not None]
    empty = [folder.name for folder in folders if folder not in filled]
    directly = sum(path.suffix.lower() in IMAGE_EXTENSIONS for path in root.iterdir() if path.is_file())
    rest = f"; there are no images in {', '.join(empty[:10])}" if empty else ""
    if len(filled) > 1:
        return None
    if filled and filled[0].name not in _NOT_CLASSES and not _STANDARD.fullmatch(filled[0].name):
        return (
            f"{root} has one class only ({filled[0].name}); a classifier needs two: add a folder with images of what "
            f"it is to be told from{rest}"
        )
    if directly or filled:
        many = directly or sum(1 for _ in image_files(filled[0]))
        return (
            f"{root} has {counted(many, 'image')} but no class folders; classification needs a folder for each class, "
            f"{root / '<class>'}/*.jpg{rest}"
        )
    if folders:
        return f"{root} has no images in its folders {', '.join(empty[:10])}; add those of each class"
    return None


def list_split(root: Path, split: str) -> Listing:
    """List the images and labels of a split.

    Args:
        root: Data folder.
        split: Exact name of the split; an empty name lists the class folders of `root` itself.

    Raises:
        FishnetError: The layout is unknown or a list is damaged; the message names the file and the remedy.
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
            f"{annotations} has no `labels` list and no `label` per image, so it describes boxes but not image "
            "classes; add both, or train detection"
        )
    if "images" in classes and set(classes) <= _NOT_CLASSES:
        raise FishnetError(f"{folder} contains images without classes (the segmentation layout); expected {LAYOUTS}")
    if not classes:
        raise FishnetError(f"the split {folder} has no classes: put its images in {folder}/<class>/")
    names: list[str] = []
    targets: list[Target] = []
    for number, name in enumerate(classes):
        found = [path.as_posix() for path in image_files(folder / name, root)]
        names += found
        targets += [number] * len(found)
    return Listing("folders", folder, names, targets, classes)


def _holds_classes(folder: Path) -> bool:
    """Return whether a folder is a split with a custom name; a class folder contains images directly."""
    directly = any(path.suffix.lower() in IMAGE_EXTENSIONS for path in folder.iterdir() if path.is_file())
    return bool(subfolders(folder)) and not directly


def _list_csv(root: Path, split: str) -> Listing:
    path = root / split / "labels.csv"
    rows: dict[str, list[str]] = {}
    for number, file, labels in read_label_rows(path):
        if file in rows:
            raise FishnetError(
                f"{path}, line {number}: {file} is listed twice; write its labels in one row, separated by |"
            )
        rows[file] = labels
    present = {label for labels in rows.values() for label in labels}
    classes = declared_classes(root) or sorted(present)
    if unknown := sorted(present - set(classes)):
        raise FishnetError(f"{path} contains labels that are not in {root / 'classes.json'}: {', '.join(unknown[:10])}")
    numbers = {name: number for number, name in enumerate(classes)}
    targets = [tuple(sorted({numbers[label] for label in labels})) for labels in rows.values()]
    return Listing("list", path, [(Path(split) / file).as_posix() for file in rows], targets, classes)


def read_label_rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line number, file and labels of each row of a `labels.csv`; raises FishnetError if it is malformed."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "labels"} <= set(reader.fieldnames or ()):
                raise FishnetError(f"{path} must start with the header `file,labels`, not {reader.fieldnames}")
            for row in reader:
                if not row["file"] or row["labels"] is None:
                    raise FishnetError(f"{path}, line {reader.line_num}: expected a file and its labels")
                yield reader.line_num, row["file"], [part.strip() for part in row["labels"].split("|") if part.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FishnetError(f"{path} is not a CSV file in UTF-8 ({error}); create it again") from error


def _list_coco(root: Path, split: str, path: Path, document: dict[str, object]) -> Listing:
    classes, images = _checked_classes(document["labels"], path), document.get("images")
    if not isinstance(images, list) or not all(
        isinstance(i, dict) and isinstance(i.get("file_name"), str) for i in images
    ):
        raise FishnetError(f"{path}: `images` must be a list of objects with a `file_name`")
    unlabeled = [image for image in images if image.get("label") is None]
    images = [image for image in images if image.get("label") is not None]
    if unlabeled and not images:
        raise FishnetError(
            f"{path}: none of the {len(unlabeled)} images has a `label`, an index into the list `labels`"
        )
    targets = [image["label"] for image in images]
    valid = [type(target) is int and 0 <= target < len(classes) for target in targets]
    if not all(valid):
        first = images[valid.index(False)]
        raise FishnetError(
            f"{path}: the `label` of {valid.count(False)} images is not an index into the {len(classes)} `labels`, "
            f"first {first['file_name']} ({first.get('label')!r})"
        )
    folder = image_folder(root, split, [image["file_name"] for image in images]).relative_to(root)
    names = [(folder / image["file_name"]).as_posix() for image in images]
    others = [(folder / image["file_name"]).as_posix() for image in unlabeled]
    return Listing("coco", path, names, targets, classes, unlabeled=others)


def _list_shards(root: Path, paths: list[Path]) -> Listing:
    shards = index_shards(paths)
    place = root / f"{paths[0].name.partition('-')[0]}-*.tar"
    classes = declared_classes(root)
    numbers = {name: number for number, name in enumerate(classes or ())}
    if all(label.isdecimal() for label in shards.labels) and not set(shards.labels) & set(numbers):
        targets = [int(label) for label in shards.labels]
        if not classes and max(targets) > MOST_CLASSES:
            raise FishnetError(
                f"{place} has the class index {max(targets)}; add {root / 'classes.json'} if that is correct"
            )
        if classes and max(targets) >= len(classes):
            raise FishnetError(
                f"{place} has the class index {max(targets)}, but {root / 'classes.json'} lists {len(classes)} classes"
            )
        classes = classes or [str(number) for number in range(max(targets) + 1)]
        return Listing("shards", place, shards.names, targets, classes, shards)
    classes = classes or sorted(set(shards.labels))
    numbers = {name: number for number, name in enumerate(classes)}
    for name, label in zip(shards.names, shards.labels, strict=True):
        if label not in numbers or not label:
            raise FishnetError(f"{root / name}: the label {label!r} is not in {root / 'classes.json'}")
    return Listing("shards", place, shards.names, [numbers[label] for label in shards.labels], classes, shards)


def declared_classes(root: Path) -> list[str] | None:
    """Return the class list of `root/classes.json`; None if there is none or it is one of a segmentation data set."""
    path = root / "classes.json"
    if not path.is_file():
        return None
    document = _load_json(path, dict | list)
    if isinstance(document, dict):
        if "ignore_index" in document:
            return None
        document = document.get("classes")
    return _checked_classes(document, path)


def _checked_classes(classes: object, path: Path) -> list[str]:
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise FishnetError(f"{path}: the class list must be a non-empty list of names")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise FishnetError(f"{path} lists the same class twice: {', '.join(twice[:10])}")
    return classes


def _load_json(path: Path, kind: type | UnionType = dict) -> Any:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FishnetError(f"{path} is not valid JSON ({error}); create it again") from error
    if not isinstance(document, kind):
        raise FishnetError(f"{path} does not have the expected structure; see docs/data-formats.md")
    return document
