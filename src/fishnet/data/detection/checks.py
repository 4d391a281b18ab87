"""Check a COCO data set for problems before training, and repair its annotation files where possible."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from fishnet.data.checks import CheckReport, ImageFacts, Severity, inspect_image, quiet_pillow
from fishnet.data.detection.coco import NONE, CocoFile, load_document, parse_coco, read_coco
from fishnet.data.detection.dataset import LAYOUT, annotation_file, missing_files, no_images, unusual_folder
from fishnet.data.detection.entries import (
    EntryError,
    box_numbers,
    has_size,
    is_id,
    is_name,
    lookup,
    parse_area,
    parse_categories,
    parse_crowd,
    parse_outline,
    parse_polygon,
)
from fishnet.data.detection.types import AnnotationEntry, Document, ImageEntry
from fishnet.data.folders import check_root, image_folder
from fishnet.data.images import MISSING, BadImageError, ImageShape, image_shape
from fishnet.data.run_lengths import bounding_boxes
from fishnet.errors import FishnetError, UsageError, counted, quoted

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "annotation files that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "image entry": ("error", "images without a usable id, file name or size"),
    "duplicate image id": ("error", "image ids that are used twice"),
    "missing image file": ("error", "image files that are missing"),
    "unreadable": ("error", "files that cannot be read as images"),
    "truncated": ("error", "truncated or damaged images"),
    "bomb": ("error", "images too large to open (decompression bombs)"),
    "wrong size": ("error", "images whose size differs from the annotation file"),
    "annotation entry": ("error", "annotations without a usable id or iscrowd"),
    "duplicate annotation id": ("error", "annotation ids that are used twice"),
    "unknown image id": ("error", "annotations of images that are not listed"),
    "unknown category id": ("error", "annotations of categories that are not listed"),
    "box entry": ("error", "boxes that are not four numbers"),
    "box not finite": ("error", "boxes with NaN or infinity"),
    "negative box": ("error", "boxes with a negative width or height"),
    "box outside": ("error", "boxes outside the image"),
    "box beyond the border": ("error", "boxes that extend beyond the image"),
    "polygon": ("error", "polygons of fewer than three points, or far outside the image"),
    "mask size": ("error", "masks whose size differs from the image"),
    "mask entry": ("error", "segmentations in an unknown format"),
    "run lengths": ("error", "masks with damaged run lengths"),
    "area entry": ("error", "areas that are not numbers of pixels"),
    "keypoint entry": ("error", "invalid keypoints"),
    "mask disagrees": ("error", "masks that do not match their box"),
    "other categories": ("error", "splits with other categories than train"),
    "duplicate across splits": ("error", "the same image in two splits"),
    "box without area": ("note", "objects whose box has no area (excluded)"),
    "rotated": (
        "note",
        "images rotated by EXIF whose size does not show whether boxes refer to stored pixels (read upright)",
    ),
    "wrong extension": ("note", "images whose extension names another format"),
    "no segmentation": ("note", "objects without a segmentation (excluded from mask training and evaluation)"),
    "empty category": ("note", "categories without objects in train"),
    "CMYK": ("note", "CMYK images (converted to RGB when read)"),
    "16-bit": ("note", "16-bit images (scaled to 8 bits when read)"),
    "animated": ("note", "animated files (the first frame is used)"),
    "alpha": ("note", "images with transparency (composited on white when read)"),
}
Result = TypeVar("Result")
_DISAGREE = 0.9
"""Minimum IoU between a box and the bounding box of its mask."""


def check_detection(root: Path | str, workers: int = 2, progress: bool = True) -> CheckReport:
    """Check all annotations and decode all images of a COCO data set.

    Args:
        root: Data folder.
        workers: Number of decoding threads.
        progress: Show a progress bar on a terminal.

    Raises:
        FishnetError: The folder is missing, empty or has no COCO file; other problems are in the report.
    """
    root = Path(root)
    check_root(root, LAYOUT)
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
            for fault in [*file.problems, *file.left_out]:
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
            advice = f"; `fishnet data split {quoted(report.root)}` creates it" if wanted == "val" else ""
            report.add("missing split", wanted, f"there is no instances_{wanted}.json{advice}")
    train = next((file for split, file in files.items() if split.startswith("train")), None)
    if train is None:
        return
    for name, count in zip(train.classes, train.class_counts().tolist(), strict=True):
        if not count:
            report.add("empty category", train.path.name, name)
    for split, file in files.items():
        if file.classes != train.classes:
            missing, extra = set(train.classes) - set(file.classes), set(file.classes) - set(train.classes)
            detail = f"missing {', '.join(sorted(missing)) or 'none'}; additional {', '.join(sorted(extra)) or 'none'}"
            report.add("other categories", split, detail)


def _check_masks(file: CocoFile, report: CheckReport) -> None:
    """Report masks whose bounding box differs much from the annotated box."""
    if file.without_outline and (file.outlines.kind != NONE).any():
        report.add("no segmentation", file.path.name, f"{file.without_outline} objects")
    objects = np.where((file.outlines.kind != NONE) & ~file.crowd)[0]
    for start in range(0, len(objects), 1000):
        part = objects[start : start + 1000]
        around = bounding_boxes([file.mask(int(index)) for index in part])
        for index, overlap in zip(part.tolist(), box_overlaps(around, file.boxes[part]).tolist(), strict=True):
            # outlines of small objects are imprecise relative to their size
            slack = 2 * file.boxes[index, 2:].sum() / max(1.0, file.boxes[index, 2:].prod())
            if overlap < _DISAGREE - slack:
                where = f"{file.path.name}, annotation {file.object_ids[index]}"
                report.add(
                    "mask disagrees", where, f"the IoU of the box and the bounding box of the mask is {overlap:.2f}"
                )


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the pairwise IoU (N,) of two sets of boxes (N, 4) given as x, y, width, height."""
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
    report.lines += [f"{split}: {note}" for note in unusual_folder(root, folder)]
    if len(file) and len(missing_files(file, folder)) == len(file):
        report.add("layout", file.path.name, no_images(file, root, split))
    jobs = (partial(_inspect, folder / name) for name in file.file_names)
    bar = tqdm(total=len(file), desc=split, unit="image", disable=None if progress else True, leave=False)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for index, (facts, shape) in enumerate(_in_chunks(pool, jobs, 64 * max(1, workers))):
            bar.update()
            path = folder / file.file_names[index]
            name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
            for kind, detail in facts.findings:
                kind = "missing image file" if detail == MISSING else kind
                report.add(kind, name, detail)
            stated = int(file.widths[index]), int(file.heights[index])
            if facts.readable:
                _check_shape(stated, shape, name, file.path.name, report)
                seen[facts.digest].append((split, name))


def _check_shape(stated: tuple[int, int], shape: ImageShape, name: str, file: str, report: CheckReport) -> None:
    """Report an image whose size differs from the stated one, or whose orientation is ambiguous."""
    if stated not in (shape.upright, shape.stored):
        width, height = shape.upright
        report.add("wrong size", name, f"{width}x{height} pixels, but {file} states {stated[0]}x{stated[1]}")
    elif shape.orientation != 1 and shape.upright == shape.stored:
        report.add("rotated", name, f"EXIF orientation {shape.orientation}")


def _in_chunks(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Result]], size: int) -> Iterator[Result]:
    while chunk := list(islice(jobs, size)):
        yield from pool.map(lambda job: job(), chunk)


def _inspect(path: Path) -> tuple[ImageFacts, ImageShape]:
    """Inspect an image; return the result and its shape, (0, 0) if it cannot be read."""
    facts = inspect_image(path.read_bytes, path.name)
    return facts, image_shape(path) if facts.readable else ImageShape((0, 0), 1)


def fix_coco(path: Path, folder: Path) -> tuple[Document, list[str]]:
    """Repair an annotation file; `read_coco` finds no fault in the result.

    Boxes are clipped at the image border. Removed are annotations without a valid box, image or category, invalid
    polygons, masks that are damaged or have another size, and invalid keypoints. Duplicate ids are renumbered.
    Image sizes are taken from the files.

    Args:
        path: Annotation file.
        folder: Folder of the images; images without a file are removed with their objects.

    Returns:
        The repaired document, and a description of each kind of change.

    Raises:
        FishnetError: The file cannot be repaired: it is not JSON, lacks one of its lists or the categories, or no image
            would be left.
    """
    document = load_document(path)
    _, category_ids, _ = parse_categories(document["categories"], path)
    categories = {int(number): int(number) for number in category_ids}
    changes: Counter[str] = Counter()
    images = _mended_images(document["images"], folder, changes)
    if document["images"] and not images:
        raise FishnetError(
            f"--fix would remove all {counted(len(document['images']), 'image')} of {path}: none can be read from "
            f"{folder}; nothing was written. Put the images there, or correct their `file_name`"
        )
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    taken = {entry["id"] for entry in document["annotations"] if isinstance(entry, dict) and is_id(entry.get("id"))}
    fresh = (number for number in range(1, 2**63) if number not in taken)
    used: set[int] = set()
    kept: list[AnnotationEntry] = []
    for entry in document["annotations"]:
        size = lookup(sizes, entry.get("image_id")) if isinstance(entry, dict) else None
        if size is None:
            changes["annotations of unknown images removed"] += 1
        elif lookup(categories, entry.get("category_id")) is None:
            changes["annotations of unknown categories removed"] += 1
        elif _mend_box(entry, *size, changes):
            _mend_outline(entry, *size, changes)
            _mend_numbers(entry, changes)
            if not is_id(entry.get("id")) or entry["id"] in used:
                entry["id"] = next(fresh)
                changes["annotations renumbered"] += 1
            used.add(entry["id"])
            kept.append(entry)
    mended: Document = {**document, "images": images, "annotations": kept}
    _remove_damaged(mended, path, changes)
    return mended, [f"{number} {what}" for what, number in changes.items()]


def _remove_damaged(document: Document, path: Path, changes: Counter[str]) -> None:
    """Remove masks and keypoints whose faults only `parse_coco` finds."""
    parts: dict[str, Literal["segmentation", "keypoints"]] = {
        "run lengths": "segmentation",
        "polygon": "segmentation",
        "keypoint entry": "keypoints",
    }
    entries = {entry["id"]: entry for entry in document["annotations"]}
    # an object with several faults is reported for one of them at a time
    while faults := [fault for fault in parse_coco(document, path).problems if fault.kind in parts]:
        for fault in faults:
            part = parts[fault.kind]
            changes["damaged masks removed" if part == "segmentation" else "invalid keypoints removed"] += 1
            if fault.number is not None:
                entries[fault.number].pop(part, None)


def _mended_images(entries: list[ImageEntry], folder: Path, changes: Counter[str]) -> list[ImageEntry]:
    kept: dict[int, ImageEntry] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not is_name(entry.get("file_name")):
            changes["images without id or file name removed"] += 1
        elif entry["id"] in kept:
            changes["images with a duplicate id removed"] += 1
        elif not os.path.isfile(folder / entry["file_name"]):  # noqa: PTH113  a name that is too long raises no error
            changes["images without a file removed"] += 1
        else:
            try:
                shape = image_shape(folder / entry["file_name"])
            except BadImageError:
                changes["images that cannot be read removed"] += 1
                continue
            if not has_size(entry) or (entry["width"], entry["height"]) not in (shape.upright, shape.stored):
                entry["width"], entry["height"] = shape.upright
                changes["sizes of images corrected"] += 1
            kept[entry["id"]] = entry
    return list(kept.values())


def _mend_box(entry: AnnotationEntry, width: int, height: int, changes: Counter[str]) -> bool:
    """Clip a box at the border of its image; return whether it is valid."""
    try:
        x, y, w, h = box = box_numbers(entry.get("bbox"))
    except EntryError as error:
        finite = error.kind != "box not finite"
        changes[f"{'annotations without a box' if finite else 'boxes with NaN or infinity'} removed"] += 1
        return False
    x1, y1 = max(0, x), max(0, y)
    x2, y2 = min(width, x + w), min(height, y + h)
    if x2 <= x1 or y2 <= y1 or min(w, h) <= 0:
        changes["boxes without area or outside the image removed"] += 1
        return False
    cut = [x1, y1, x2 - x1, y2 - y1]
    if max(abs(a - b) for a, b in zip(cut, box, strict=True)) > 1:
        entry["bbox"] = cut
        changes["boxes clipped at the border"] += 1
    return True


def _mend_outline(entry: AnnotationEntry, width: int, height: int, changes: Counter[str]) -> None:
    outline = entry.get("segmentation")
    if isinstance(outline, list):
        good = [polygon for polygon in outline if _works(parse_polygon, polygon)]
        if len(good) < len(outline):
            entry["segmentation"] = good
            changes["polygons of fewer than three points removed"] += 1
    elif not _works(parse_outline, outline, width, height):
        entry["segmentation"] = []
        changes["masks of another size or format removed"] += 1


def _mend_numbers(entry: AnnotationEntry, changes: Counter[str]) -> None:
    if not _works(parse_area, entry.get("area"), [0.0] * 4):
        del entry["area"]
        changes["areas that are not numbers removed"] += 1
    if not _works(parse_crowd, entry.get("iscrowd")):
        entry["iscrowd"] = int(str(entry["iscrowd"]).strip().lower() in ("1", "true", "yes"))
        changes["values of iscrowd replaced by 0 or 1"] += 1


def _works(parse: Callable[..., object], *values: object) -> bool:
    try:
        parse(*values)
    except EntryError:
        return False
    return True


def split_to_fix(report: CheckReport, split: str | None) -> str:
    """Return the split whose annotation file is repaired: the given one, or the only one.

    Raises:
        UsageError: There are several splits and none is given, or the given one does not exist.
    """
    splits = list(report.summary["splits"])
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise UsageError(f"--fix repairs one annotation file; choose its split with --split ({', '.join(splits)})")
    return split
