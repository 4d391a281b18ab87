"""What is wrong with a COCO data set before a detector is trained on it, and mending what can be mended."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fishnet.data.checks import CheckReport, Severity, inspect_image, quiet_pillow
from fishnet.data.coco import NONE, CocoFile, read_coco
from fishnet.data.detection import annotation_file, image_folder
from fishnet.data.layouts import check_root
from fishnet.errors import FishnetError, UsageError

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "annotation files that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "image entry": ("error", "images without id, file name or size"),
    "duplicate image id": ("error", "image ids that are used twice"),
    "missing image file": ("error", "image files that are missing"),
    "unreadable": ("error", "files that cannot be read as images"),
    "truncated": ("error", "truncated or damaged images"),
    "bomb": ("error", "images too large to open (decompression bombs)"),
    "wrong size": ("error", "images of another size than their annotations are made for"),
    "annotation entry": ("error", "annotations without an id"),
    "duplicate annotation id": ("error", "annotation ids that are used twice"),
    "unknown image id": ("error", "annotations of images that are not listed"),
    "unknown category id": ("error", "annotations of categories that are not listed"),
    "box entry": ("error", "boxes that are no four numbers"),
    "box not finite": ("error", "boxes with NaN or infinity"),
    "box without area": ("error", "boxes without a positive width and height"),
    "box outside": ("error", "boxes outside the image"),
    "box beyond the border": ("error", "boxes that reach beyond the image"),
    "polygon": ("error", "polygons of fewer than three points"),
    "mask size": ("error", "masks made for another size"),
    "mask entry": ("error", "segmentations of an unknown form"),
    "mask disagrees": ("error", "masks that do not fit their box"),
    "other categories": ("error", "splits with other categories than train"),
    "duplicate across splits": ("error", "the same picture in two splits"),
    "wrong extension": ("note", "images whose extension names another format"),
    "no segmentation": ("note", "objects without a segmentation (their box counts as their mask)"),
    "empty category": ("note", "categories without an object in train"),
    "CMYK": ("note", "CMYK images (converted to RGB when read)"),
    "16-bit": ("note", "16-bit images (scaled to 8 bits when read)"),
    "animated": ("note", "animated files (the first frame is used)"),
    "alpha": ("note", "images with transparency (composed on white when read)"),
}
_DISAGREE = 0.9
"""Overlap of a box with the box around its mask below which they do not belong together."""


def check_detection(root: Path | str, workers: int = 2, progress: bool = True) -> CheckReport:
    """Look at every annotation and decode every image of a COCO data set.

    Args:
        root: Data folder.
        workers: Threads that decode.
        progress: Show a bar on a terminal.

    Raises:
        FishnetError: The folder is missing, empty or holds no COCO file; all else is in the report.
    """
    root = Path(root)
    check_root(root)
    report = CheckReport(root, [], kinds=KINDS)
    files: dict[str, CocoFile] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        split = path.stem.removeprefix("instances_")
        try:
            files[split] = read_coco(path)
        except FishnetError as error:
            report.add("layout", path.name, str(error))
    if not files and not report.problems:
        annotation_file(root, "train")
    report.summary["splits"] = {
        split: {"images": len(file), "objects": int((~file.crowd).sum()), "crowds": int(file.crowd.sum())}
        for split, file in files.items()
    }
    _check_splits(files, report)
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    with quiet_pillow():
        for split, file in files.items():
            for fault in file.problems:
                report.add(fault.kind, fault.where, fault.detail)
            _check_masks(file, report)
            _check_images(root, split, file, report, seen, workers, progress)
    for places in seen.values():
        if len({split for split, _ in places}) > 1:
            (_, first), *others = {split: (split, name) for split, name in reversed(places)}.values()
            report.add("duplicate across splits", first, f"same as {', '.join(name for _, name in others)}")
    return report


def _check_splits(files: dict[str, CocoFile], report: CheckReport) -> None:
    for wanted in ("val", "train"):
        if files and not any(split.startswith(wanted) for split in files):
            report.add("missing split", wanted, f"there is no instances_{wanted}.json")
    train = next((file for split, file in files.items() if split.startswith("train")), None)
    if train is None:
        return
    for name, count in zip(train.classes, train.class_counts().tolist(), strict=True):
        if not count:
            report.add("empty category", train.path.name, name)
    for split, file in files.items():
        if file.classes != train.classes:
            missing, extra = set(train.classes) - set(file.classes), set(file.classes) - set(train.classes)
            detail = f"missing {', '.join(sorted(missing)) or 'none'}; further {', '.join(sorted(extra)) or 'none'}"
            report.add("other categories", split, detail)


def _check_masks(file: CocoFile, report: CheckReport) -> None:
    """Report masks whose own box differs much from the box that stands beside them."""
    if file.without_outline and (file.outlines.kind != NONE).any():
        report.add("no segmentation", file.path.name, f"{file.without_outline} objects")
    from faster_coco_eval.core import mask as rle_of

    objects = np.where((file.outlines.kind != NONE) & ~file.crowd)[0]
    for start in range(0, len(objects), 1000):
        part = objects[start : start + 1000]
        around = np.asarray(rle_of.toBbox([file.mask(int(index)) for index in part])).reshape(-1, 4)
        for index, overlap in zip(part.tolist(), box_overlaps(around, file.boxes[part]).tolist(), strict=True):
            # the outline of a small object is coarser than a pixel
            slack = 2 * file.boxes[index, 2:].sum() / max(1.0, file.boxes[index, 2:].prod())
            if overlap < _DISAGREE - slack:
                where = f"{file.path.name}, annotation {file.object_ids[index]}"
                report.add("mask disagrees", where, f"the overlap of box and mask's box is {overlap:.2f}")


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N,) of boxes (N, 4) given as x, y, width, height, pair by pair."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    union = first[:, 2:].prod(1) + second[:, 2:].prod(1) - shared
    return shared / np.maximum(union, 1e-12)


def _check_images(
    root: Path,
    split: str,
    file: CocoFile,
    report: CheckReport,
    seen: dict[bytes, list[tuple[str, str]]],
    workers: int,
    progress: bool,
) -> None:
    folder = image_folder(root, split, file.file_names)
    jobs = (partial(_inspect, folder / name) for name in file.file_names)
    bar = tqdm(total=len(file), desc=split, unit="image", disable=None if progress else True, leave=False)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for index, (facts, size) in enumerate(_in_chunks(pool, jobs, 64 * max(1, workers))):
            bar.update()
            name = (folder / file.file_names[index]).relative_to(root).as_posix()
            for kind, detail in facts.findings:
                kind = "missing image file" if detail == "there is no such file" else kind
                report.add(kind, name, detail)
            stated = int(file.widths[index]), int(file.heights[index])
            if facts.readable and size not in (stated, stated[::-1]):
                stated_text = f"{stated[0]}x{stated[1]}"
                report.add("wrong size", name, f"{size[0]}x{size[1]} pixels, {file.path.name} says {stated_text}")
            if facts.readable:
                seen[facts.digest].append((split, name))


def _in_chunks(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Any]], size: int) -> Iterator[Any]:
    while chunk := list(islice(jobs, size)):
        yield from pool.map(lambda job: job(), chunk)


def _inspect(path: Path) -> tuple[Any, tuple[int, int]]:
    """Return the facts of an image, and its width and height as stored."""
    facts = inspect_image(path.read_bytes, path.name)
    if not facts.readable:
        return facts, (0, 0)
    with Image.open(path) as image:
        return facts, image.size


def fix_coco(path: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return an annotation file with its faults mended, and what was changed in words.

    Boxes are cut at the border; what has no box, image or category left is removed; so are polygons that are none and
    masks made for another size; ids that are used twice are renumbered; sizes of images are those of the files.

    Args:
        path: Annotation file.
        folder: Where the images lie; those without a file are removed with their objects.

    Raises:
        FishnetError: A file that is beyond mending: no JSON, or without its lists.
    """
    read_coco(path)  # complains of what cannot be mended
    document = json.loads(path.read_bytes())
    changes: Counter[str] = Counter()
    images = _mended_images(document["images"], folder, changes)
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    categories = {category["id"] for category in document["categories"]}
    used: set[int] = set()
    highest = max((a["id"] for a in document["annotations"] if _has_id(a)), default=0)
    kept = []
    for entry in document["annotations"]:
        if not isinstance(entry, dict) or entry.get("image_id") not in sizes:
            changes["annotations of unknown images removed"] += 1
        elif entry.get("category_id") not in categories:
            changes["annotations of unknown categories removed"] += 1
        elif _mend_box(entry, *sizes[entry["image_id"]], changes):
            _mend_outline(entry, *sizes[entry["image_id"]], changes)
            if not _has_id(entry) or entry["id"] in used:
                highest += 1
                entry["id"] = highest
                changes["annotations renumbered"] += 1
            used.add(entry["id"])
            kept.append(entry)
    mended = {**document, "images": images, "annotations": kept}
    return mended, [f"{count} {what}" for what, count in changes.items()]


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is int


def _mended_images(entries: list[Any], folder: Path, changes: Counter[str]) -> list[dict[str, Any]]:
    kept: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if not _has_id(entry) or not isinstance(entry.get("file_name"), str):
            changes["images without id or file name removed"] += 1
        elif entry["id"] in kept:
            changes["images with an id that was used before removed"] += 1
        elif not (folder / entry["file_name"]).is_file():
            changes["images without a file removed"] += 1
        else:
            try:
                with Image.open(folder / entry["file_name"]) as image:
                    size = image.size
            except OSError:
                changes["images that cannot be read removed"] += 1
                continue
            stated = entry.get("width"), entry.get("height")
            if size not in (stated, stated[::-1]):
                entry["width"], entry["height"] = size
                changes["sizes of images corrected"] += 1
            kept[entry["id"]] = entry
    return list(kept.values())


def _mend_box(entry: dict[str, Any], width: int, height: int, changes: Counter[str]) -> bool:
    """Cut a box at the border of its image; return whether there is a box at all."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        changes["annotations without a box removed"] += 1
        return False
    if not np.isfinite(box).all():
        changes["boxes with NaN or infinity removed"] += 1
        return False
    x1, y1 = max(0, box[0]), max(0, box[1])
    x2, y2 = min(width, box[0] + box[2]), min(height, box[1] + box[3])
    if x2 <= x1 or y2 <= y1:
        changes["boxes without area or outside the image removed"] += 1
        return False
    cut = [x1, y1, x2 - x1, y2 - y1]
    if max(abs(a - b) for a, b in zip(cut, box, strict=True)) > 1:
        entry["bbox"] = cut
        changes["boxes cut at the border"] += 1
    return True


def _mend_outline(entry: dict[str, Any], width: int, height: int, changes: Counter[str]) -> None:
    outline = entry.get("segmentation")
    if isinstance(outline, list):
        good = [p for p in outline if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
        if len(good) < len(outline):
            entry["segmentation"] = good
            changes["polygons of fewer than three points removed"] += 1
    elif outline and (not isinstance(outline, dict) or outline.get("size") != [height, width]):
        entry["segmentation"] = []
        changes["masks of another size or form removed"] += 1


def split_to_fix(report: CheckReport, split: str | None) -> str:
    """Return the split whose file is mended: the one that is named, or the only one there is.

    Raises:
        UsageError: Several, and none is named; or one that is not there.
    """
    splits = list(report.summary["splits"])
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise UsageError(f"--fix mends one annotation file: name its split with --split ({', '.join(splits)})")
    return split
