"""Check a multitask folder for problems before training: the labels of each image, and whether they are valid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fishnet.data.checks import CheckReport, ImageFacts, Severity, inspect_image, quiet_pillow
from fishnet.data.detection.checks import KINDS as OBJECT_KINDS
from fishnet.data.detection.coco import load_document, read_coco
from fishnet.data.detection.dataset import annotation_file
from fishnet.data.folders import check_root, subfolders
from fishnet.data.images import MISSING, BadImageError
from fishnet.data.levels import LEVELS
from fishnet.data.multitask.layout import (
    LAYOUT,
    MultitaskSplit,
    Source,
    open_multitask,
    parse_sources,
    without_labels,
)
from fishnet.data.segmentation.layouts import layout_of
from fishnet.data.segmentation.layouts import list_split as list_label_maps
from fishnet.errors import FishnetError

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "lists, folders or classes that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "other classes": ("error", "splits with other classes than train"),
    "no label": ("error", "images without a label of any level (excluded)"),
    "missing level": ("note", "levels that no image of a split has"),
    "not annotated": ("error", "objects of categories that were not annotated in their image"),
    "missing image": ("error", "label maps without an image"),
    "same stem": ("error", "files whose stem another one has"),
    "lossy label": ("error", "label maps as JPEG, which changes their values"),
    "unusable": ("error", "images and label maps that cannot be used together"),
    "empty class": ("note", "classes that do not occur in train"),
    **{kind: entry for kind, entry in OBJECT_KINDS.items() if kind not in ("layout", "missing split")},
}
_MOST_ROWS = 60


class _Facts(NamedTuple):
    """What was found in an image."""

    image: ImageFacts
    fault: str
    """Why the image and its labels cannot be used together; empty if they can."""
    pixels: np.ndarray | None
    """Pixels of each class of the label map, int64 (classes,)."""


def check_multitask(data: Path | str, workers: int = 2, progress: bool = True) -> CheckReport:
    """Count the labels of each level, check all of them, and decode all images of a multitask folder, or of several
    folders that are used together.

    Args:
        data: Data folder, or folders by level, as `image=DIR1,region=DIR2`; see `parse_sources`.
        workers: Number of decoding threads.
        progress: Show a progress bar on a terminal.

    Raises:
        UsageError: A level is unknown.
        FishnetError: A folder is missing, empty or has no labels of any level; other problems are in the report.
    """
    sources = parse_sources(data)
    report = CheckReport(Path(data), [], kinds=KINDS)
    splits: dict[str, MultitaskSplit] = {}
    names = _splits_of(sources)
    for name in names:
        try:
            splits[name] = open_multitask(data, name, bad_images="skip")
        except FishnetError as error:
            report.add("layout", name, str(error))
    report.summary["splits"] = {name: _counts(split) for name, split in splits.items()}
    for wanted in ("val", "train"):
        if not any(name.startswith(wanted) for name in names):
            report.add("missing split", wanted, f"there is no {wanted} split")
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    counts: dict[str, list[np.ndarray]] = {}
    with quiet_pillow():
        for name, split in splits.items():
            _check_lists(sources, split, report)
            counts[name] = _check_images(sources, split, report, seen, workers, progress)
    _check_classes(splits, counts, report)
    for places in seen.values():
        first_of: dict[str, str] = {}
        for name, path in places:
            first_of.setdefault(name, path)
        if len(first_of) > 1:
            first, *others = first_of.values()
            report.add("duplicate across splits", first, f"same as {', '.join(others)}")
    return report


def _splits_of(sources: list[Source]) -> list[str]:
    """Return the names of the splits; several folders, or one for a level, are taken to have the usual ones.

    Raises:
        FishnetError: A folder is missing or has no splits.
    """
    for source in sources:
        check_root(source.root, LAYOUT)
    if len(sources) > 1 or sources[0].level is not None:
        return ["train", "val"]
    root = sources[0].root
    if not (names := available_splits(root)):
        raise FishnetError(f"{root} contains no multitask data; expected {LAYOUT}")
    return names


def available_splits(root: Path) -> list[str]:
    """Return the names of the splits of a multitask folder: train, val and test first, then others by name."""
    found = {path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json")}
    found |= {folder.name for folder in subfolders(root) if (folder / "images").is_dir()}
    order = {"train": 0, "val": 1, "test": 2}
    return sorted(found, key=lambda name: (order.get(name.rstrip("0123456789"), 3), name))


def _counts(split: MultitaskSplit) -> dict[str, int]:
    """Return the number of images, of those with labels of each level, and of each combination of levels."""
    each = {f"with {level} labels": count for level, count in zip(LEVELS, split.known.sum(0).tolist(), strict=True)}
    combined = {f"with {name} only": count for name, count in split.counts().items()} if len(split.counts()) > 1 else {}
    return {"images": len(split), **each, **combined}


def _check_lists(sources: list[Source], split: MultitaskSplit, report: CheckReport) -> None:
    """Report missing files, missing labels and unusable objects of a split."""
    for level, count in zip(LEVELS, split.known.sum(0).tolist(), strict=True):
        if not count:
            report.add("missing level", split.name, f"no image has labels of the {level} level")
    for root, wanted in sources:
        if wanted is None:
            for path in without_labels(root, split.name, set(split.paths)):
                report.add("no label", _relative(path, sources), "")
        if wanted in (None, "pixel"):
            _check_label_maps(root, split.name, report)
        if wanted in (None, "region"):
            _check_objects(root, split.name, report)


def _check_label_maps(root: Path, split: str, report: CheckReport) -> None:
    """Report label maps without an image and other problems of their files."""
    if layout_of(root) == "folders" and (root / split / "labels").is_dir():
        listing = list_label_maps(root, split)
        for kind, names in (
            ("missing image", listing.orphans),
            ("same stem", listing.doubled),
            ("lossy label", listing.lossy),
        ):
            for name in names:
                report.add(kind, name, "")


def _check_objects(root: Path, split: str, report: CheckReport) -> None:
    """Report objects that cannot be used, or whose category was not annotated in their image."""
    if not any((root / "annotations").glob("instances_*.json")):
        return
    path = annotation_file(root, split)
    if not load_document(path)["categories"]:
        return
    file = read_coco(path)
    for fault in [*file.problems, *file.left_out]:
        report.add(fault.kind, fault.where, fault.detail)
    for image, annotated in file.annotated.items():
        for place in file.objects(image):
            if file.class_of[place] not in annotated:
                where = f"{path.name}, annotation {file.object_ids[place]}"
                report.add("not annotated", where, f"{file.classes[file.class_of[place]]} in {file.file_names[image]}")


def _check_images(
    sources: list[Source],
    split: MultitaskSplit,
    report: CheckReport,
    seen: dict[bytes, list[tuple[str, str]]],
    workers: int,
    progress: bool,
) -> list[np.ndarray]:
    """Decode the images and label maps of a split; return per level how many images, objects or pixels a class has."""
    pixels = np.zeros(len(split.classes.pixel), np.int64)
    bar = tqdm(total=len(split), desc=split.name, unit="image", disable=None if progress else True, leave=False)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for index, facts in enumerate(_inspected(pool, split, 64 * max(1, workers))):
            bar.update()
            name = _relative(split.paths[index], sources)
            for kind, detail in facts.image.findings:
                report.add("missing image file" if detail == MISSING else kind, name, detail)
            if facts.image.readable:
                seen[facts.image.digest].append((split.name, name))
                if facts.fault:
                    report.add("unusable", name, facts.fault)
            if facts.pixels is not None:
                pixels += facts.pixels
    labels = split.labels[split.labels >= 0]
    objects = sum((one.file.class_counts() for one in split.regions), np.zeros(len(split.classes.region), np.int64))
    return [np.bincount(labels, minlength=len(split.classes.image)), objects, pixels]


def _inspected(pool: ThreadPoolExecutor, split: MultitaskSplit, size: int) -> Iterator[_Facts]:
    places = iter(range(len(split)))
    while chunk := list(islice(places, size)):
        yield from pool.map(lambda index: _inspect(split, index), chunk)


def _inspect(split: MultitaskSplit, index: int) -> _Facts:
    path = split.paths[index]
    facts = inspect_image(path.read_bytes, path.name)
    if not facts.readable:
        return _Facts(facts, "", None)
    try:
        _, labels = split.load(index)
    except BadImageError as error:
        return _Facts(facts, str(error), None)
    if labels.label_map is None:
        return _Facts(facts, "", None)
    found = np.bincount(labels.label_map.ravel(), minlength=len(split.classes.pixel))
    return _Facts(facts, "", found[: len(split.classes.pixel)])


def _check_classes(splits: dict[str, MultitaskSplit], counts: dict[str, list[np.ndarray]], report: CheckReport) -> None:
    """Report classes that differ between splits or do not occur in train, and list how often each occurs."""
    train = next((name for name in splits if name.startswith("train")), None)
    for place, level in enumerate(LEVELS):
        unit = {"image": "images", "region": "objects", "pixel": "pixels"}[level]
        having = {name: split.classes.of(level) for name, split in splits.items() if split.classes.of(level)}
        if not having:
            continue
        first = train if train in having else next(iter(having))
        width = max(len(name) for name in [*having[first][:_MOST_ROWS], f"{level} class"])
        report.lines.append(f"\n{f'{level} class':<{width}}" + "".join(f"  {f'{n} {unit}':>16}" for n in having))
        for row, name in enumerate(having[first][:_MOST_ROWS]):
            cells = (f"{counts[split][place][row]:,}" if row < len(counts[split][place]) else "" for split in having)
            report.lines.append(f"{name:<{width}}" + "".join(f"  {cell:>16}" for cell in cells))
        if len(having[first]) > _MOST_ROWS:
            report.lines.append(f"... and {len(having[first]) - _MOST_ROWS} more classes")
        if train in having:
            for row in np.flatnonzero(counts[train][place] == 0).tolist():
                report.add("empty class", train, f"{level} level: {having[train][row]}")
        for split, names in having.items():
            if names != having[first]:
                missing, extra = sorted(set(having[first]) - set(names)), sorted(set(names) - set(having[first]))
                detail = f"missing {', '.join(missing) or 'none'}; additional {', '.join(extra) or 'none'}"
                report.add("other classes", split, f"{level} level: {detail}")


def _relative(path: Path, sources: list[Source]) -> str:
    """Return a path for display: relative to the data folder, if the path is in it."""
    for base in (sources[0].root, sources[0].root.resolve()):
        if len(sources) == 1 and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)
