"""What is wrong with a data set, or worth knowing, before anything is trained on it."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from tqdm import tqdm

from fishnet.data.images import IMAGE_EXTENSIONS, explain, is_truncated, refuse_bomb, to_rgb
from fishnet.data.layouts import (
    LAYOUTS,
    Listing,
    all_files,
    available_splits,
    image_files,
    list_split,
    subfolders,
)
from fishnet.errors import FishnetError

Severity = Literal["error", "note"]

_KINDS: dict[str, tuple[Severity, str]] = {
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
_EXTENSIONS_OF = {"MPO": "JPEG"}  # a JPEG file with a second picture behind the first, as some phones write it


@dataclass(frozen=True)
class Problem:
    """One finding; an error should be mended, a note is only worth knowing."""

    kind: str
    path: str
    detail: str
    severity: Severity


@dataclass
class CheckReport:
    """What a check found; `kinds` gives severity and title of every kind of finding, in the order of the listing."""

    root: Path
    problems: list[Problem]
    summary: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, tuple[Severity, str]] = field(default_factory=lambda: _KINDS)

    def add(self, kind: str, path: str, detail: str, severity: Severity | None = None) -> None:
        """Note a finding, by default of the severity of its kind."""
        self.problems.append(Problem(kind, path, detail, severity or self.kinds[kind][0]))

    @property
    def exit_code(self) -> int:
        """1 where there is an error, 0 where there are notes at most."""
        return int(any(problem.severity == "error" for problem in self.problems))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "format_version": 1,
            "directory": str(self.root),
            "summary": self.summary,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def describe(self, limit: int = 5) -> str:
        """Return a listing grouped by kind, errors first, with the first `limit` paths of each."""
        lines = []
        for split, counts in self.summary.get("splits", {}).items():
            lines.append(f"{split or self.root}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        groups: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        for kind in (kind for kind in self.kinds if kind in groups):
            severity, title = self.kinds[kind]
            found = groups[kind]
            lines.append(f"\n{severity}: {title}: {len(found)}")
            lines += ["  " + ": ".join(text for text in (p.path, p.detail) if text) for p in found[:limit]]
            if len(found) > limit:
                lines.append(f"  ... and {len(found) - limit} more")
        errors = sum(problem.severity == "error" for problem in self.problems)
        notes = len(self.problems) - errors
        lines.append(f"\n{errors} errors, {notes} notes in {self.root}" if errors else f"\nno problems in {self.root}")
        return "\n".join(lines)


class ImageFacts(NamedTuple):
    """What one image file turned out to be."""

    findings: list[tuple[str, str]]
    """Kind and detail of each."""
    digest: bytes
    """Hash of the RGB pixels, so that a copy in another format is found too; of the bytes where unreadable."""
    readable: bool


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
    root = Path(root)
    report = CheckReport(root, [])
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


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow from warning of what the report says anyway (bombs, damaged EXIF); for all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def inspect_listings(
    root: Path, listings: Collection[Listing], min_size: int = 0, workers: int = 2, progress: bool = True
) -> Iterator[ImageFacts]:
    """Yield the facts of every image of the listings, in their order.

    Threads suffice, since decoding and hashing free the interpreter; they need no pickling and start at once.
    """
    total = sum(len(listing.names) for listing in listings)
    jobs = ((partial(each.read, root, i), each.names[i], min_size) for each in listings for i in range(len(each.names)))
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=total, unit="image", disable=None if progress else True, leave=False) as bar,
    ):
        while chunk := list(islice(jobs, 64 * max(1, workers))):
            for facts in pool.map(lambda job: inspect_image(*job), chunk):
                bar.update()
                yield facts


def inspect_image(read: Callable[[], bytes], name: str, min_size: int = 0) -> ImageFacts:
    """Decode one image wholly and return what there is to say about it.

    Args:
        read: Returns the content; may raise OSError.
        name: File name; its extension is compared with the content.
        min_size: Smallest side in pixels that is not reported.
    """
    content = b""
    try:
        content = read()
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            findings = list(_traits(image, name, min_size))
            rgb = to_rgb(image)
    except FileNotFoundError:
        return ImageFacts([("unreadable", "there is no such file")], name.encode(), False)
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        kind = "bomb" if bomb else "truncated" if content and is_truncated(error) else "unreadable"
        return ImageFacts([(kind, explain(error, content))], _hash(content or name.encode()), False)
    return ImageFacts(findings, _hash(str(rgb.size).encode(), rgb.tobytes()), True)


def _hash(*parts: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def _traits(image: Image.Image, name: str, min_size: int) -> Iterator[tuple[str, str]]:
    """Yield what the header of an opened image, not decoded yet, tells."""
    suffix = Path(name).suffix.lower()
    kind = _EXTENSIONS_OF.get(image.format or "", image.format)
    if Image.registered_extensions().get(suffix) != kind:
        yield "wrong extension", f"the content is {kind}"
    if min(image.size) < min_size:
        yield "small", f"{image.width}x{image.height}, below {min_size} pixels"
    if image.mode == "CMYK":
        yield "CMYK", ""
    # Pillow reads 16-bit colour into 8 bits; only the raw mode of its decoder tells
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith("I") or ";16" in raw_modes:
        yield "16-bit", ""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "animated", f"{getattr(image, 'n_frames', 2)} frames"
    if image.has_transparency_data:
        yield "alpha", ""


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
