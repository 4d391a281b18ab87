"""Check a segmentation data set for problems before training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fishnet.data.checks import CheckReport, ImageFacts, Severity, inspect_image, quiet_pillow
from fishnet.data.images import MISSING, ImageShape, image_shape
from fishnet.data.segmentation.coding import LabelCoding, LabelError
from fishnet.data.segmentation.dataset import no_pairs, read_raw_labels, size_mismatch
from fishnet.data.segmentation.guesses import guess_colors, guess_values
from fishnet.data.segmentation.layouts import Listing, Pair, available_splits, list_split
from fishnet.data.segmentation.weights import PixelCounts
from fishnet.errors import FishnetError, quoted

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "lists, folders or classes that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "missing label": ("error", "images without a label map"),
    "missing image": ("error", "label maps without an image"),
    "same stem": ("error", "files whose stem another one has"),
    "lossy label": ("error", "label maps as JPEG, which changes their values"),
    "unreadable": ("error", "files that cannot be read as images"),
    "truncated": ("error", "truncated or damaged images"),
    "bomb": ("error", "images too large to open (decompression bombs)"),
    "unreadable label": ("error", "label maps that cannot be read"),
    "label format": ("error", "label maps that are neither class indices nor colors of a palette"),
    "unknown values": ("error", "label maps with values that are not classes"),
    "size mismatch": ("error", "label maps whose size differs from their image"),
    "one class": ("error", "splits with a single class"),
    "no labels": ("error", "splits whose pixels are all ignored"),
    "duplicate across splits": ("error", "the same image in two splits"),
    "all ignored": ("note", "label maps whose pixels are all ignored"),
    "empty class": ("note", "classes without pixels in train"),
    "rotated": ("note", "images rotated by EXIF whose size does not show whether labels refer to stored pixels"),
    "wrong extension": ("note", "images whose extension names another format"),
    "CMYK": ("note", "CMYK images (converted to RGB when read)"),
    "16-bit": ("note", "16-bit images (scaled to 8 bits when read)"),
    "animated": ("note", "animated files (the first frame is used)"),
    "alpha": ("note", "images with transparency (composited on white when read)"),
}
_MOST_ROWS = 60
_MOST_VALUES = 4096


class _PairFacts(NamedTuple):
    """What was found in an image and its label map."""

    image: ImageFacts
    shape: ImageShape
    size: tuple[int, int]
    """Width and height of the label map; (0, 0) if it cannot be read."""
    values: dict[int, int]
    """Pixels of each value of the label file, or of each color."""
    colors: bool
    palette: bool
    counts: np.ndarray | None
    """int64 (ignore_index + 1,): pixels of each class; None if the label map cannot be used."""
    error: LabelError | None


@dataclass
class _SplitFacts:
    """What was found in a split."""

    listing: Listing
    counts: PixelCounts
    values: Counter[int] = field(default_factory=Counter)
    colors: Counter[int] = field(default_factory=Counter)
    palette: bool = False
    faulty: list[tuple[str, LabelError]] = field(default_factory=list)
    """Label maps that cannot be used, and why."""


def check_segmentation(root: Path | str, workers: int = 2, progress: bool = True) -> CheckReport:
    """Check all label maps and decode all images of a segmentation data set in any layout.

    Args:
        root: Data folder.
        workers: Number of decoding threads.
        progress: Show a progress bar on a terminal.

    Raises:
        FishnetError: The folder is missing, empty or has an unknown layout; other problems are in the report.
    """
    root = Path(root)
    report = CheckReport(root, [], kinds=KINDS)
    listings = _list_all(root, report)
    facts: dict[str, _SplitFacts] = {}
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    with quiet_pillow():
        for split, listing in listings.items():
            _check_files(listing, report)
            facts[split] = _check_pairs(listing, report, seen, workers, progress)
    for split, found in facts.items():
        _check_values(split, found, report)
        _check_classes(split, found, report)
    for places in seen.values():
        if len({split for split, _ in places}) > 1:
            (_, first), *others = {split: (split, name) for split, name in reversed(places)}.values()
            report.add("duplicate across splits", first, f"same as {', '.join(name for _, name in others)}")
    report.lines = _histogram(facts)
    report.summary["pixels"] = {
        split: dict(zip(found.listing.coding.classes, found.counts.pixels.tolist(), strict=True))
        for split, found in facts.items()
    }
    return report


def _list_all(root: Path, report: CheckReport) -> dict[str, Listing]:
    splits = available_splits(root)
    listings = {}
    for split in splits:
        try:
            listings[split] = list_split(root, split)
        except FishnetError as error:
            report.add("layout", split, str(error))
    if splits == [""]:
        report.add(
            "missing split", "", f"there is no train and no val split; `fishnet data split {quoted(root)}` creates both"
        )
    elif not any(split.startswith("val") for split in splits):
        advice = f"; `fishnet data split {quoted(root)}` creates it from train" if "train" in splits else ""
        report.add("missing split", "val", f"there is no val split{advice}")
    if splits != [""] and not any(split.startswith("train") for split in splits):
        report.add("missing split", "train", "there is no train split", "note")
    report.summary["splits"] = {
        split: {"images": len(listing.pairs), "classes": len(listing.coding.classes)}
        for split, listing in listings.items()
    }
    return listings


def _check_files(listing: Listing, report: CheckReport) -> None:
    """Report files without a partner."""
    if not listing.pairs:
        report.add("layout", listing.split, no_pairs(listing))
    # in a folder of several levels an image may have any subset of labels
    levels = any((listing.root / "annotations").glob("instances_*.json"))
    for name in listing.unlabeled:
        report.add("missing label", name, "", "note" if levels else "error")
    for kind, names in (
        ("missing image", listing.orphans),
        ("same stem", listing.doubled),
        ("lossy label", listing.lossy),
    ):
        for name in names:
            report.add(kind, name, "")


def _check_pairs(
    listing: Listing, report: CheckReport, seen: dict[bytes, list[tuple[str, str]]], workers: int, progress: bool
) -> _SplitFacts:
    """Read all images and label maps of a split, and report problems of single files."""
    coding, classes = listing.coding, len(listing.coding.classes)
    found = _SplitFacts(listing, PixelCounts.empty(classes))
    bar = tqdm(
        total=len(listing.pairs), desc=listing.split, unit="image", disable=None if progress else True, leave=False
    )
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for pair, facts in zip(listing.pairs, _inspected(pool, listing, 32 * max(1, workers)), strict=True):
            bar.update()
            for kind, detail in facts.image.findings:
                report.add(kind, pair.image, detail)
            (found.colors if facts.colors else found.values).update(facts.values)
            found.palette |= facts.palette
            if facts.image.readable:
                seen[facts.image.digest].append((listing.split, pair.image))
            _check_size(pair, facts, report)
            if facts.error is not None:
                found.faulty.append((pair.label, facts.error))
            elif facts.counts is not None:
                found.counts.add(facts.counts[:classes], int(facts.counts[coding.ignore_index]))
                if not facts.counts[:classes].any():
                    report.add("all ignored", pair.label, "")
    return found


def _inspected(pool: ThreadPoolExecutor, listing: Listing, size: int) -> Iterator[_PairFacts]:
    pairs = iter(listing.pairs)
    while chunk := list(islice(pairs, size)):
        yield from pool.map(lambda pair: _inspect(listing.root, pair, listing.coding), chunk)


def _inspect(root: Path, pair: Pair, coding: LabelCoding) -> _PairFacts:
    path = root / pair.image
    image = inspect_image(path.read_bytes, path.name)
    shape = image_shape(path) if image.readable else ImageShape((0, 0), 1)
    try:
        raw = read_raw_labels(root / pair.label, coding.has_colors)
    except LabelError as error:
        return _PairFacts(image, shape, (0, 0), {}, False, False, None, error)
    numbers, amounts = np.unique(raw.values, return_counts=True)
    values = dict(zip(numbers[:_MOST_VALUES].tolist(), amounts[:_MOST_VALUES].tolist(), strict=True))
    size = raw.values.shape[1], raw.values.shape[0]
    try:
        counts = np.bincount(coding.decode(raw).ravel(), minlength=coding.ignore_index + 1)
    except LabelError as error:
        return _PairFacts(image, shape, size, values, raw.colors, raw.palette, None, error)
    return _PairFacts(image, shape, size, values, raw.colors, raw.palette, counts, None)


def _check_size(pair: Pair, facts: _PairFacts, report: CheckReport) -> None:
    """Report a label map whose size differs from its image."""
    if not facts.image.readable or facts.size == (0, 0):
        return
    if facts.size not in (facts.shape.upright, facts.shape.stored):
        report.add("size mismatch", pair.label, size_mismatch(facts.size, facts.shape.upright, Path(pair.image)))
    elif facts.shape.orientation != 1 and facts.shape.upright == facts.shape.stored:
        report.add("rotated", pair.image, f"EXIF orientation {facts.shape.orientation} (read upright)")


def _check_values(split: str, found: _SplitFacts, report: CheckReport) -> None:
    """Report unusable label maps, with a guess of their encoding for each kind of problem."""
    by_kind: dict[str, list[tuple[str, LabelError]]] = defaultdict(list)
    for name, error in found.faulty:
        by_kind[error.kind].append((name, error))
    coding, total = found.listing.coding, len(found.listing.pairs)
    for kind, faulty in by_kind.items():
        if kind in ("unknown values", "label format"):
            colors = bool(found.colors) and any(error.unknown.keys() <= found.colors.keys() for _, error in faulty)
            if colors or found.values:
                values, palette = found.values, found.palette
                guess = guess_colors(found.colors, coding) if colors else guess_values(values, coding, palette)
                report.add(kind, split, f"{len(faulty)} of {total} label maps: {guess}")
        for name, error in faulty:
            known = kind if kind in KINDS else "unreadable label"
            report.add("missing label" if str(error) == MISSING else known, name, str(error))


def _check_classes(split: str, found: _SplitFacts, report: CheckReport) -> None:
    """Report classes without pixels, and splits without labeled pixels."""
    coding, counts = found.listing.coding, found.counts
    read = len(found.listing.pairs) - len(found.faulty)
    present = np.flatnonzero(counts.pixels)
    training = not split or split.startswith("train")
    severity: Severity = "error" if training else "note"
    if read and not len(present):
        report.add("no labels", split, f"all pixels of {read} label maps are ignored", severity)
    if read and len(present) == 1:
        name = coding.classes[int(present[0])]
        masks = set(found.values) == {0, 255} and not found.colors and len(coding.classes) == 2
        guess = f"; {guess_values(found.values, coding)}" if masks else ""
        report.add("one class", split, f"{name} is the only class of {read} label maps{guess}", severity)
    if training and len(present) > 1:
        for index in np.flatnonzero(counts.pixels == 0).tolist():
            report.add("empty class", split, coding.classes[index])


def _histogram(facts: dict[str, _SplitFacts]) -> list[str]:
    """Return a table of the fraction of pixels and the number of images of each class in each split."""
    named = {split or "images": found for split, found in facts.items() if found.counts.pixels.any()}
    if not named:
        return []
    classes = list(dict.fromkeys(name for found in named.values() for name in found.listing.coding.classes))
    width = max(len(name) for name in [*classes[:_MOST_ROWS], "ignored"])
    lines = [f"\n{'class':<{width}}" + "".join(f"  {split + ' pixels':>16}  {'images':>7}" for split in named)]
    for name in classes[:_MOST_ROWS]:
        line = f"{name:<{width}}"
        for found in named.values():
            index = found.listing.coding.classes.index(name) if name in found.listing.coding.classes else None
            share = 0.0 if index is None else found.counts.pixels[index] / found.counts.pixels.sum()
            images = 0 if index is None else int(found.counts.images[index])
            line += f"  {100 * share:>14.2f} %  {images:>7,}"
        lines.append(line)
    if len(classes) > _MOST_ROWS:
        lines.append(f"... and {len(classes) - _MOST_ROWS} more classes")
    line = f"{'ignored':<{width}}"
    for found in named.values():
        every = found.counts.ignored + int(found.counts.pixels.sum())
        line += f"  {100 * found.counts.ignored / every:>14.2f} %  {'':>7}"
    return [*lines, line.rstrip()]
