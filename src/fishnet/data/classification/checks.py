"""Check a classification data set for problems before training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fishnet.data.checks import CheckReport, ImageFacts, Severity, inspect_images, quiet_pillow
from fishnet.data.classification.layouts import LAYOUTS, Listing, Target, available_splits, explain_classes, list_split
from fishnet.data.folders import all_files, image_files, subfolders
from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError, UsageError, counted, quoted

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "lists or folders that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "unreadable": ("error", "files that cannot be read as images"),
    "truncated": ("error", "truncated or damaged images"),
    "bomb": ("error", "images too large to open (decompression bombs)"),
    "wrong extension": ("error", "images whose extension names another format"),
    "overlooked image": ("error", "images that are ignored because of their extension"),
    "small": ("error", "images smaller than the smallest input"),
    "empty class": ("error", "classes without images"),
    "missing class": ("error", "classes that only one split has"),
    "duplicate across splits": ("error", "the same image in two splits"),
    "contradiction": ("error", "the same image with two labels in one split"),
    "duplicate": ("note", "the same image twice in one class"),
    "CMYK": ("note", "CMYK images (converted to RGB when read)"),
    "16-bit": ("note", "16-bit images (scaled to 8 bits when read)"),
    "animated": ("note", "animated files (the first frame is used)"),
    "alpha": ("note", "images with transparency (composited on white when read)"),
    "unlabeled": ("note", "images without a label (excluded)"),
    "unlisted": ("note", "images that are not in the list of the split"),
    "other file": ("note", "files that are not images (ignored)"),
}


class _Entry(NamedTuple):
    split: str
    name: str
    target: Target


def check_classification(
    root: Path | str, min_size: int = 32, workers: int = 2, progress: bool = True
) -> CheckReport:  # fmt: skip
    """Check all lists and decode all images of a classification data set in any layout.

    Args:
        root: Data folder.
        min_size: Images whose shorter side is below this number of pixels are reported.
        workers: Number of decoding threads.
        progress: Show a progress bar on a terminal.

    Raises:
        FishnetError: The folder is missing, empty or has an unknown layout; other problems are in the report.
    """
    if min_size < 1:
        raise UsageError(f"--min-size must be at least 1 pixel, not {min_size}")
    root = Path(root)
    report = CheckReport(root, [], kinds=KINDS)
    listings = _list_all(root, report)
    entries = [
        _Entry(split, name, target)
        for split, listing in listings.items()
        for name, target in zip(listing.names, listing.targets, strict=True)
    ]
    digests: dict[bytes, list[_Entry]] = defaultdict(list)
    with quiet_pillow():
        inspected = inspect_listings(root, listings.values(), min_size, workers, progress)
        for entry, facts in zip(entries, inspected, strict=True):
            for kind, detail in facts.findings:
                report.add(kind, entry.name, detail)
            if facts.readable:
                digests[facts.digest].append(entry)
    for split, listing in listings.items():
        _check_other_files(root, split, listing, report)
    _check_classes(listings, report)
    for group in digests.values():
        _check_duplicates(group, report)
    return report


def _list_all(root: Path, report: CheckReport) -> dict[str, Listing]:
    """Return the listing of each split; class folders without splits count as one split with an empty name."""
    splits = available_splits(root)
    if not splits:
        if text := explain_classes(root):
            raise FishnetError(text)
        if not any(next(image_files(folder), None) for folder in subfolders(root)):
            raise FishnetError(f"{root} contains no data in a known layout; expected {LAYOUTS}")
        splits = [""]
        report.add(
            "missing split", "", f"there is no train and no val split; `fishnet data split {quoted(root)}` creates both"
        )
    listings = {}
    for split in splits:
        try:
            listings[split] = list_split(root, split)
        except FishnetError as error:
            report.add("layout", split, str(error))
    if splits != [""] and not any(split.startswith("val") for split in splits):
        advice = f"; `fishnet data split {quoted(root)}` creates it from train" if "train" in splits else ""
        report.add("missing split", "val", f"there is no val split{advice}")
    if splits != [""] and not any(split.startswith("train") for split in splits):
        report.add("missing split", "train", "there is no train split", "note")
    report.summary["splits"] = {
        split: {"images": len(listing.names), "classes": len(listing.classes)} for split, listing in listings.items()
    }
    return listings


def _check_other_files(root: Path, split: str, listing: Listing, report: CheckReport) -> None:
    """Report files that are not listed: forgotten images, and files that are not images."""
    if listing.kind == "shards":
        return
    folder = root / split
    if listing.kind == "coco" and listing.names and listing.names[0].startswith(f"{split}/images/"):
        folder = folder / "images"  # next to it are the label maps for segmentation
    if listing.unlabeled:
        report.add("unlabeled", split, f"{counted(len(listing.unlabeled), 'image')} of {listing.place.name}")
    listed = {*listing.names, *listing.unlabeled}
    for path in all_files(folder, root):
        name = path.as_posix()
        if name in listed or root / path == listing.place:
            continue
        if path.suffix.lower() in IMAGE_EXTENSIONS:
            report.add("unlisted", name, "" if listing.kind != "folders" else "it is not in a class folder")
        elif kind := _identify(root / path):
            report.add("overlooked image", name, f"the content is {kind}; rename it")
        else:
            report.add("other file", name, "")


def _identify(path: Path) -> str | None:
    """Return the image format of a file by its content; None if it is not an image."""
    try:
        with Image.open(path) as image:
            return image.format
    except Exception:
        return None


def _check_classes(listings: dict[str, Listing], report: CheckReport) -> None:
    train = next((split for split in listings if split.startswith("train")), None)
    for split, listing in listings.items():
        counts = Counter(label for labels in listing.labels for label in labels)
        # with several labels per image, a split need not contain every label
        severity: Severity = "note" if listing.multi_label and split != train else "error"
        for number, name in enumerate(listing.classes):
            if not counts[number]:
                report.add("empty class", split, f"{name} has no images", severity)
        if train is None or split == train:
            continue
        for name in sorted(set(listings[train].classes) - set(listing.classes)):
            report.add("missing class", split, f"{name} is only in {train}", severity)
        for name in sorted(set(listing.classes) - set(listings[train].classes)):
            report.add("missing class", split, f"{name} is only in {split}", "error")


def _check_duplicates(group: list[_Entry], report: CheckReport) -> None:
    """Report a group of entries with equal pixels; one finding per group, split and kind."""
    if len(group) < 2:
        return
    by_split: dict[str, list[_Entry]] = defaultdict(list)
    for entry in group:
        by_split[entry.split].append(entry)
    if len(by_split) > 1:
        first, *others = (entries[0].name for entries in by_split.values())
        report.add("duplicate across splits", first, f"same as {', '.join(others)}")
    for entries in by_split.values():
        if len(entries) < 2:
            continue
        kind = "contradiction" if len({entry.target for entry in entries}) > 1 else "duplicate"
        names = [entry.name for entry in entries[1:]]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        report.add(kind, entries[0].name, f"same as {', '.join(names[:3])}{more}")


def inspect_listings(
    root: Path, listings: Collection[Listing], min_size: int = 0, workers: int = 2, progress: bool = True
) -> Iterator[ImageFacts]:
    """Inspect all images of the listings and yield the results in order."""
    total = sum(len(listing.names) for listing in listings)
    jobs = ((partial(each.read, root, i), each.names[i]) for each in listings for i in range(len(each.names)))
    return inspect_images(jobs, total, min_size, workers, progress)
