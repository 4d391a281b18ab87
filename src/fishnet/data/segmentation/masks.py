"""Recognize label maps in folders of other names, label files with a suffix, and the classes that their values suggest.

- DIR/images and DIR/masks, with or without splits in both or around both
- DIR/<split> and DIR/<split>_masks
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fishnet.data.folders import free_name, image_files, subfolders
from fishnet.data.segmentation.coding import LabelError, raw_labels, unpacked

CLASSES_FILE = "classes.json"
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
LABEL_FOLDERS = ("labels", "masks", "mask", "annotations", "label", "gt", "segmentations", "segmentation")
_SUFFIX = re.compile(r"[-_](masks?|labels?|labelids|labeltrainids|l|gt|seg|segmentation|annotation)$", re.IGNORECASE)
_SAME = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
_SPLITS = {"train", "val", "test", *_SAME}
_LOOKED_AT = 20
_LISTED = 12
"""Values and colors that an advice lists."""
_MOST_VALUES, _MOST_COLORS = 64, 256
"""Files with more different values or colors than that are no label maps."""


def without_suffix(key: str) -> str:
    """Return a path without extension and without a suffix of label maps, such as `_mask`, `_L` or `_labelIds`."""
    return _SUFFIX.sub("", key)


def mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of label maps of every split, `train` without splits; empty if there are none.

    A folder with `images` and `labels`, which is the library's own layout, is returned too.
    """
    if not root.is_dir():
        return {}
    if pair := _pair(root):
        names = [folder.name for folder in subfolders(pair[0]) if (pair[1] / folder.name).is_dir()]
        found = {name: (pair[0] / name, pair[1] / name) for name in names} or {"train": pair}
    else:
        inside = {folder.name: _pair(folder) for folder in subfolders(root)}
        found = {name: pair for name, pair in inside.items() if pair} or _beside(root)
    return {_SAME.get(name.lower(), name): folders for name, folders in found.items()}


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of label maps in a folder."""
    images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
    labels = next((folder / name for name in LABEL_FOLDERS if _has_images(folder / name)), None)
    return (images, labels) if images and labels else None


def _beside(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the pairs of a folder and one with a suffix, such as `train` and `train_labels`."""
    found = {}
    for folder in subfolders(root):
        name = without_suffix(folder.name)
        if name != folder.name and name.lower() in _SPLITS and (root / name).is_dir() and _has_images(folder):
            found[name] = (root / name, folder)
    return found


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and next(image_files(folder), None) is not None


def explain_masks(root: Path) -> str | None:
    """Return where a folder has label maps that must be converted first, and all that this needs; None: none."""
    found = mask_folders(root)
    if not found:
        return None
    _, labels = next(iter(found.values()))
    val = " --val 0.2" if len(found) == 1 else ""
    command = f"`fishnet data convert {shlex.quote(str(root))} {shlex.quote(str(free_name(root, 'labels')))}{val}`"
    needs = "" if (root / CLASSES_FILE).is_file() else f". It needs the classes first: {advise_classes(root, labels)}"
    return f"{root} has label maps in {labels}; {command} writes the layout of this library{needs}"


def advise_classes(root: Path, labels: Path) -> str:
    """Return that classes.json is missing, with a content that fits the values of some of the label maps.

    Args:
        root: Data folder.
        labels: Folder of label maps.
    """
    values, colors = _look(sorted(image_files(labels))[:_LOOKED_AT] if labels.is_dir() else [])
    path = root / CLASSES_FILE
    if 0 < len(colors) <= _MOST_COLORS:
        listed = [list(unpacked(color)) for color, _ in colors.most_common(_LISTED)]
        example = {"classes": [f"class {number}" for number in range(len(listed))], "palette": listed}
        what = f"the label maps have {len(colors)} colors"
        if len(colors) > _LISTED:
            what += f", of which the {_LISTED} most frequent follow"
        return f"{path} is missing; {what}; write it with the name and color of each class: {json.dumps(example)}"
    found = sorted(values)
    if colors or not found or len(found) > _MOST_VALUES:
        return (
            f"{path} is missing; write the names of the classes, in the order of the values of the label maps: "
            '{"classes": ["background", "cat"], "ignore_index": 255}'
        )
    shown = ", ".join(map(str, found[:_LISTED])) + (", ..." if len(found) > _LISTED else "")
    return f"{path} is missing; the label maps have the values {shown}; write it with your names: {_example(found)}"


def _example(found: Sequence[int]) -> str:
    """Return a classes.json for some values."""
    if list(found) in ([0, 255], [255]):
        return json.dumps({"values": {"0": "background", "255": "object"}, "ignore_index": None})
    classes = [value for value in found if value != 255]
    names = {value: "background" if value == 0 else f"class {value}" for value in range(classes[-1] + 1)}
    if classes[-1] < 2 * len(classes):
        return json.dumps({"classes": list(names.values()), "ignore_index": 255})
    return json.dumps({"values": {str(value): names[value] for value in classes}, "ignore_index": 255})


def _look(paths: Sequence[Path]) -> tuple[Counter[int], Counter[int]]:
    """Return the pixels of each value, and of each color, in the label maps that can be read."""
    values, colors = Counter[int](), Counter[int]()
    for path in paths:
        try:
            with Image.open(path) as image:
                raw = raw_labels(image)
        except (LabelError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        array = raw.values * np.uint8(255) if raw.values.dtype == np.bool_ else raw.values
        numbers, counts = np.unique(array, return_counts=True)
        (colors if raw.colors else values).update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    return values, colors
