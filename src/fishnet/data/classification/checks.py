"""What is wrong with classification data, or worth knowing, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fishnet.data.checks import CheckReport, ImageFacts, Severity, inspect_images, quiet_pillow
from fishnet.data.classification.layouts import LAYOUTS, Listing, available_splits, list_split
from fishnet.data.folders import all_files, image_files, subfolders
from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError, UsageError

KINDS: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "lists or folders that cannot be used"),
    "missing split": ("error", "splits that are missing"),
    "unreadable": ("error", "files that cannot be read as images"),
    "truncated": ("error", "truncated or damaged images"),
    "bomb": ("error", "images too large to open (decompression bombs)"),
    "wrong extension": ("error", "images whose extension names another format"),
    "overlooked image": ("error", "images that training does not see, for their extension"),
    "small": ("error", "images below the smallest input"),
    "empty class": ("error", "classes without an image"),
    "missing class": ("error", "classes that only one split has"),
    "duplicate across splits": ("error", "the same picture in two splits"),
    "contradiction": ("error", "the same picture under two labels in one split"),
    "duplicate": ("note", "the same picture twice in one class"),
    "CMYK": ("note", "CMYK images (converted to RGB when read)"),
    "16-bit": ("note", "16-bit images (scaled to 8 bits when read)"),
    "animated": ("note", "animated files (the first frame is used)"),
    "alpha": ("note", "images with transparency (composed on white when read)"),
    "unlisted": ("note", "images that the list of the split does not name"),
    "other file": ("note", "files that are no images (ignored)"),
}


class _Entry(NamedTuple):
    split: str
    name: str
    target: Any


def check_classification(
    root: Path | str, min_size: int = 32, workers: int = 2, progress: bool = True
) -> CheckReport:  # fmt: skip
    """Look at every list and decode every image of a classification data set, whatever its layout.

    Args:
        root: Data folder.
        min_size: Smallest side, in pixels, of an image that needs no enlarging.
        workers: Threads that decode.
        progress: Show a bar on a terminal.

    Raises:
        FishnetError: The folder is missing, empty or of no known layout; all else is in the report.
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
    """Return the listing of every split; class folders without splits count as one split without a name."""
    splits = available_splits(root)
    if not splits:
        if not any(next(image_files(folder), None) for folder in subfolders(root)):
            raise FishnetError(f"{root} holds no data of a known layout; expected {LAYOUTS}")
        splits = [""]
        report.add("missing split", "", f"there is no train and val; `fishnet data split {root}` makes both")
    listings = {}
    for split in splits:
        try:
            listings[split] = list_split(root, split)
        except FishnetError as error:
            report.add("layout", split, str(error))
    if splits != [""] and not any(split.startswith("val") for split in splits):
        advice = f"; `fishnet data split {root}` makes one from train" if "train" in splits else ""
        report.add("missing split", "val", f"there is no val split{advice}")
    if splits != [""] and not any(split.startswith("train") for split in splits):
        report.add("missing split", "train", "there is no train split", "note")
    report.summary["splits"] = {
        split: {"images": len(listing.names), "classes": len(listing.classes)} for split, listing in listings.items()
    }
    return listings


def _check_other_files(root: Path, split: str, listing: Listing, report: CheckReport) -> None:
    """Report files beside the listed images: forgotten images, and files that are none."""
    if listing.kind == "shards":
        return
    folder = root / split
    if listing.kind == "coco" and listing.names and listing.names[0].startswith(f"{split}/images/"):
        folder = folder / "images"  # beside it lie the label maps of the pixel level
    listed = set(listing.names)
    for path in all_files(folder, root):
        name = path.as_posix()
        if name in listed or root / path == listing.place:
            continue
        if path.suffix.lower() in IMAGE_EXTENSIONS:
            report.add("unlisted", name, "" if listing.kind != "folders" else "it lies in no class folder")
        elif kind := _identify(root / path):
            report.add("overlooked image", name, f"the content is {kind}, rename it")
        else:
            report.add("other file", name, "")


def _identify(path: Path) -> str | None:
    """Return the format of a file by its first bytes, or nothing where it is no image."""
    try:
        with Image.open(path) as image:
            return image.format
    except Exception:
        return None


def _check_classes(listings: dict[str, Listing], report: CheckReport) -> None:
    train = next((split for split in listings if split.startswith("train")), None)
    for split, listing in listings.items():
        labels = listing.targets if not listing.multi_label else [label for t in listing.targets for label in t]
        counts = Counter(labels)
        # an image with several labels need not show every one in val
        severity: Severity = "note" if listing.multi_label and split != train else "error"
        for number, name in enumerate(listing.classes):
            if not counts[number]:
                report.add("empty class", split, f"{name} has no image", severity)
        if train is None or split == train:
            continue
        for name in sorted(set(listings[train].classes) - set(listing.classes)):
            report.add("missing class", split, f"{name} is in {train} only", severity)
        for name in sorted(set(listing.classes) - set(listings[train].classes)):
            report.add("missing class", split, f"{name} is in {split} only", "error")


def _check_duplicates(group: list[_Entry], report: CheckReport) -> None:
    """Report what a set of entries with equal pixels means; one line for each group, split and kind."""
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
    """Yield the facts of every image of the listings, in their order."""
    total = sum(len(listing.names) for listing in listings)
    jobs = ((partial(each.read, root, i), each.names[i]) for each in listings for i in range(len(each.names)))
    return inspect_images(jobs, total, min_size, workers, progress)
