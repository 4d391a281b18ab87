"""Parse and validate single entries of COCO files: categories, images and annotations.

Files come from many tools, so every value is checked; masks are later passed to C code, which trusts its input. Entries
are checked one by one where that is cheap, and all at once where it is not (`faulty_outlines`, `faulty_keypoints`).
"""

from __future__ import annotations

import math
import re
import reprlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np

from fishnet.data.detection.types import AnnotationEntry, CategoryEntry, ImageEntry
from fishnet.data.levels import ANNOTATED
from fishnet.errors import FishnetError

Outline = list[np.ndarray] | bytes | np.ndarray | None
"""Polygons (float64, x0 y0 x1 y1 ...), compressed run lengths, plain run lengths (uint32), or None."""

MOST_PIXELS, LONGEST_SIDE, MOST_KEYPOINTS = 2**31 - 1, 1_000_000, 1000
"""Limits for images and categories; run lengths of masks are 32-bit numbers."""

Found = TypeVar("Found")
_NUMBERS = frozenset((int, float))
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_BYTES_AT_ONCE = 1 << 17  # keeps temporary arrays in the CPU cache


@dataclass(frozen=True)
class Fault:
    """Entry of an annotation file that cannot be used for training, and the reason."""

    kind: str
    where: str
    detail: str
    number: int | None = None
    """Id of the annotation; None for images and for annotations without a usable id."""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class EntryError(Exception):
    """Entry that cannot be used; has the kind and the description of the fault."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class ImagePlace(NamedTuple):
    """Index and size of an image."""

    number: int
    """Index in the list of images."""
    width: int
    height: int


class ParsedObject(NamedTuple):
    """Validated annotation."""

    number: int
    """Id of the annotation."""
    image: int
    """Index of its image."""
    label: int
    """Index of its class."""
    box: list[float]
    area: float
    crowd: bool
    outline: Outline
    keypoints: np.ndarray | None


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value is a 64-bit integer and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_name(value: object) -> TypeGuard[str]:
    """Return whether a value is printable, non-empty text that can be the name of a file or class."""
    return isinstance(value, str) and bool(value) and _UNPRINTABLE.search(value) is None


def parse_categories(entries: list[CategoryEntry], path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Return class names and ids, both sorted by id, and the names of the keypoints.

    Raises:
        FishnetError: There are no categories, one has no usable id or name, or their keypoints differ.
    """
    if not entries:
        raise FishnetError(f"{path} lists no categories; add the classes of the objects")
    for entry in entries:
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not is_name(entry.get("name")):
            shown = reprlib.repr(entry)
            raise FishnetError(f"{path}: each category needs an integer `id` and a one-line `name`, not {shown}")
    entries = sorted(entries, key=lambda entry: entry["id"])
    ids = Counter(entry["id"] for entry in entries)
    if twice := [number for number, count in ids.items() if count > 1]:
        raise FishnetError(f"{path}: category id {twice[0]} is used twice")
    named = [entry for entry in entries if entry.get("keypoints")]
    for entry in named:
        names = entry["keypoints"]
        if not isinstance(names, list) or not all(map(is_name, names)) or len(names) > MOST_KEYPOINTS:
            raise FishnetError(
                f"{path}, category {entry['id']}: `keypoints` must be a list of up to {MOST_KEYPOINTS} names, "
                f"not {reprlib.repr(names)}"
            )
        if names != named[0]["keypoints"]:
            raise FishnetError(f"{path}: all categories with keypoints must have the same `keypoints`")
    keypoints = list(named[0]["keypoints"]) if named else []
    return [entry["name"] for entry in entries], np.array(list(ids), dtype=np.int64), keypoints


def parse_image(entry: ImageEntry, classes: dict[int, int], seen: set[int]) -> ImageEntry:
    """Validate and return an image entry; its id is added to `seen` even if the entry is unusable.

    Args:
        entry: Image of a COCO document.
        classes: Class indices by category id.
        seen: Ids of the previous images.

    Raises:
        EntryError: The entry cannot be used.
    """
    number = entry.get("id") if isinstance(entry, dict) else None
    if not is_id(number):
        raise EntryError("image entry", "has no integer `id`")
    used, name = number in seen, entry.get("file_name")
    seen.add(number)
    if not is_name(name):
        raise EntryError("image entry", f"its `file_name` is not a file name: {reprlib.repr(name)}")
    if used:
        raise EntryError("duplicate image id", f"the id is used twice ({reprlib.repr(name)})")
    if not has_size(entry):
        sides = f"{reprlib.repr(entry.get('width'))} x {reprlib.repr(entry.get('height'))}"
        raise EntryError("image entry", f"`width` and `height` must be positive numbers of pixels, not {sides}")
    annotated = entry.get(ANNOTATED)
    if annotated is not None and not _are_categories(annotated, classes):
        shown = reprlib.repr(annotated)
        raise EntryError("image entry", f"`{ANNOTATED}` must be a list of category ids of the file, not {shown}")
    return entry


def _are_categories(numbers: object, classes: dict[int, int]) -> bool:
    return isinstance(numbers, list) and all(is_id(number) and number in classes for number in numbers)


def has_size(entry: ImageEntry) -> bool:
    """Return whether the width and height of an image entry are positive and within the limits."""
    width, height = entry.get("width"), entry.get("height")
    return (
        type(width) is int
        and type(height) is int
        and 0 < width <= LONGEST_SIDE
        and 0 < height <= LONGEST_SIDE
        and width * height <= MOST_PIXELS
    )


def parse_object(
    entry: AnnotationEntry, images: dict[int, ImagePlace], classes: dict[int, int], keypoints: int, seen: set[int]
) -> ParsedObject:
    """Validate an annotation and add its id to `seen`.

    Outlines and keypoints must also be checked by `faulty_outlines` and `faulty_keypoints`.

    Args:
        entry: Annotation of a COCO document.
        images: Images by id.
        classes: Class indices by category id.
        keypoints: Number of keypoints per object.
        seen: Ids of the previous annotations.

    Raises:
        EntryError: The annotation cannot be used.
    """
    number = entry.get("id") if isinstance(entry, dict) else None
    if not is_id(number):
        raise EntryError("annotation entry", "has no integer `id`")
    if number in seen:
        raise EntryError("duplicate annotation id", "the id is used twice")
    image = lookup(images, entry.get("image_id"))
    if image is None:
        raise EntryError(
            "unknown image id", f"image {reprlib.repr(entry.get('image_id'))} is not in the list of images"
        )
    label = lookup(classes, entry.get("category_id"))
    if label is None:
        shown = reprlib.repr(entry.get("category_id"))
        raise EntryError("unknown category id", f"category {shown} is not in the list of categories")
    box = parse_box(entry.get("bbox"), image.width, image.height)
    crowd = parse_crowd(entry.get("iscrowd"))
    outline = parse_outline(entry.get("segmentation"), image.width, image.height)
    points = parse_keypoints(entry.get("keypoints"), keypoints) if keypoints else None
    area = parse_area(entry.get("area"), box)
    seen.add(number)
    return ParsedObject(number, image.number, label, box, area, crowd, outline, points)


def lookup(table: dict[int, Found], number: Any) -> Found | None:
    """Return the value for a number (1.0 equals 1); None if it is missing or the key is not a number."""
    return table.get(number) if type(number) in _NUMBERS else None


def parse_box(box: object, width: int, height: int) -> list[float]:
    """Validate a box and return its x, y, width, height in pixels.

    Raises:
        EntryError: The box is malformed or outside the image; of kind "box without area" if a side is 0.
    """
    x, y, w, h = numbers = box_numbers(box)
    if w < 0 or h < 0:
        raise EntryError(
            "negative box",
            f"the box {reprlib.repr(box)} has a negative width or height; the format is [x, y, width, height]",
        )
    if w == 0 or h == 0:
        raise EntryError("box without area", f"the box {reprlib.repr(box)} has zero width or height")
    # up to one pixel beyond the border is tolerated as rounding; COCO's own files contain boxes on the border
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise EntryError("box outside", f"the box {reprlib.repr(box)} is outside the image of {width}x{height} pixels")
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        detail = f"the box {reprlib.repr(box)} extends beyond the image of {width}x{height} pixels"
        raise EntryError("box beyond the border", detail)
    return numbers


def box_numbers(box: object) -> list[float]:
    """Return x, y, width, height; raises EntryError if the box is not four finite numbers."""
    if not isinstance(box, list) or len(box) != 4:
        raise EntryError("box entry", f"`bbox` must be [x, y, width, height], not {reprlib.repr(box)}")
    a, b, c, d = box
    if not (type(a) in _NUMBERS and type(b) in _NUMBERS and type(c) in _NUMBERS and type(d) in _NUMBERS):
        raise EntryError("box entry", f"`bbox` must be [x, y, width, height], not {reprlib.repr(box)}")
    try:
        x, y, w, h = float(a), float(b), float(c), float(d)
        finite = math.isfinite(x + y + w + h)
    except OverflowError:
        finite = False
    if not finite:
        raise EntryError(
            "box not finite", f"the box {reprlib.repr(box)} contains NaN, infinity or numbers that are too large"
        )
    return [x, y, w, h]


def parse_crowd(value: object) -> bool:
    """Return whether an object is a crowd; raises EntryError if the value is neither None, 0 nor 1."""
    if value is None or value == 0:
        return False
    if value == 1:
        return True
    raise EntryError("annotation entry", f"`iscrowd` must be 0 or 1, not {reprlib.repr(value)}")


def parse_area(area: float | None, box: list[float]) -> float:
    """Return the area of the file, or that of the box if it has none; raises EntryError if it is not a valid number."""
    if area is None:
        return box[2] * box[3]
    if type(area) not in _NUMBERS or not 0 <= area <= 1e18:
        raise EntryError("area entry", f"`area` must be a number of pixels, not {reprlib.repr(area)}")
    return float(area)


def parse_outline(outline: object, width: int, height: int) -> Outline:
    """Return a segmentation as polygons or run lengths, None if empty; raises EntryError if it is neither."""
    if not outline:
        return None
    if isinstance(outline, dict):
        size = outline.get("size")
        if size != [height, width]:
            detail = f"the mask has the size {reprlib.repr(size)}, but the image [{height}, {width}] (height, width)"
            raise EntryError("mask size", detail)
        return _parse_runs(outline.get("counts"), height * width)
    if not isinstance(outline, list):
        shown = reprlib.repr(outline)
        raise EntryError("mask entry", f"`segmentation` must be polygons or run lengths, not {shown}")
    return [parse_polygon(polygon) for polygon in outline]


def parse_polygon(polygon: object) -> np.ndarray:
    """Return the coordinates of a polygon; raises EntryError if it has fewer than three points."""
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
        points = f"{len(polygon) / 2:g}" if isinstance(polygon, list) else "no"
        raise EntryError("polygon", f"a polygon has {points} points, but needs at least three")
    values = _numbers(polygon)
    if values is None:
        raise EntryError("polygon", f"a polygon must contain only numbers, not {reprlib.repr(polygon)}")
    return values


def _parse_runs(counts: object, pixels: int) -> bytes | np.ndarray:
    """Return run lengths; raises EntryError if they are malformed or plain ones do not cover all pixels."""
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    lengths = _numbers(counts) if isinstance(counts, list) else None
    if lengths is None or (lengths != np.floor(lengths)).any():
        shown = reprlib.repr(counts)
        raise EntryError("run lengths", f"`counts` must be a COCO string or a list of integers, not {shown}")
    if not ((lengths >= 0) & (lengths <= pixels)).all() or lengths.sum() != pixels:
        raise EntryError(
            "run lengths", f"the run lengths of the mask do not add up to the {pixels} pixels of the image"
        )
    return lengths.astype(np.uint32)


def parse_keypoints(points: object, count: int) -> np.ndarray | None:
    """Return x, y, visibility of each keypoint, float64 (3 * count,); None if empty; raises EntryError if malformed."""
    if not points:
        return None
    values = _numbers(points) if isinstance(points, list) and len(points) == 3 * count else None
    if values is None:
        shown = reprlib.repr(points)
        raise EntryError(
            "keypoint entry", f"`keypoints` must be {3 * count} numbers (x, y, visibility of each), not {shown}"
        )
    return values


def _numbers(values: list[float]) -> np.ndarray | None:
    """Return a flat list of numbers as float64; None if it contains anything else."""
    try:
        return np.frombuffer(array("d", values))  # faster than NumPy, and stricter: NumPy accepts text and None
    except (TypeError, OverflowError):
        return None


def faulty_outlines(
    objects: list[ParsedObject], values: np.ndarray, ends: np.ndarray, owners: np.ndarray, sizes: np.ndarray
) -> Iterator[tuple[int, EntryError]]:
    """Yield index and fault of each object whose polygons or compressed run lengths cannot be drawn.

    Args:
        objects: All objects.
        values: Coordinates of all polygons, float64.
        ends: End of each polygon in `values`.
        owners: Object index of each polygon.
        sizes: Width and height of each object's image, int64 (N, 2).
    """
    if len(ends):
        # coordinates are clipped at the border when drawn; this far outside they are damaged
        starts = np.concatenate([[0], ends[:-1]])
        limits = sizes[owners]
        good = np.ones(len(ends), dtype=bool)
        for axis in range(2):
            along = values[axis::2]  # each polygon starts at an even index
            low = np.minimum.reduceat(along, starts // 2)
            high = np.maximum.reduceat(along, starts // 2)
            good &= (low >= -limits[:, axis]) & (high <= 2 * limits[:, axis])
        for owner in np.unique(owners[~good]).tolist():
            yield owner, EntryError("polygon", "a polygon contains NaN, infinity or points far outside the image")
    coded = [index for index, one in enumerate(objects) if isinstance(one.outline, bytes)]
    for chunk in _chunks(coded, objects):
        totals = run_totals([objects[index].outline for index in chunk])  # type: ignore[misc]
        pixels = sizes[chunk].prod(1)
        for place in np.flatnonzero(totals != pixels).tolist():
            detail = f"the run lengths of the mask are damaged: they do not cover {pixels[place]} pixels"
            yield chunk[place], EntryError("run lengths", detail)


def _chunks(indices: list[int], objects: list[ParsedObject]) -> Iterator[list[int]]:
    """Yield the indices in groups with about `_BYTES_AT_ONCE` bytes of run lengths."""
    chunk: list[int] = []
    room = _BYTES_AT_ONCE
    for index in indices:
        chunk.append(index)
        room -= len(objects[index].outline)  # type: ignore[arg-type]
        if room <= 0:
            yield chunk
            chunk, room = [], _BYTES_AT_ONCE
    if chunk:
        yield chunk


def run_totals(strings: list[bytes]) -> np.ndarray:
    """Return the number of pixels that each string of compressed run lengths covers, -1 if it is damaged.

    The encoding is COCO's (maskApi.c): six bits per character, offset by 48; five of them are digits of a signed
    number, lowest first, and the sixth is set if more digits follow. From the fourth number on, each is the difference
    to the second last number.
    """
    lengths = np.array([len(string) for string in strings])
    bad = lengths == 0
    data = np.frombuffer(b"".join(strings), dtype=np.uint8) - np.uint8(48)  # characters below 48 wrap to large values
    string_ends = np.cumsum(lengths)
    last = data < 32  # the last character of a number
    for wrong in (np.flatnonzero(data > 63), string_ends[~bad][~last[string_ends[~bad] - 1]] - 1):
        bad[np.searchsorted(string_ends, wrong, side="right")] = True
    last[string_ends[lengths > 0] - 1] = True
    stops = np.flatnonzero(last)
    starts = np.concatenate([[0], stops[:-1] + 1])[: len(stops)]
    digits = stops - starts + 1
    numbers = np.diff(np.searchsorted(stops, np.concatenate([[0], string_ends])))  # numbers per string
    owner = np.repeat(np.arange(len(strings), dtype=np.int32), numbers)
    bad[owner[digits > 7]] = True  # 35 bits hold any difference of 32-bit numbers
    values = (data[starts] & 31).astype(np.int32)  # wraps as the C code does
    for place in range(1, min(7, int(digits.max(initial=1)))):
        longer = np.flatnonzero(digits > place)
        values[longer] += (data[starts[longer] + place] & 31).astype(np.int32) << 5 * place
    negative = np.flatnonzero((data[stops] & 16 > 0) & (digits < 7))
    values[negative] -= np.int32(1) << (5 * digits[negative]).astype(np.int32)
    totals = _chained_totals(values, numbers.astype(np.int32), owner)
    return np.where(bad, -1, totals)


def _chained_totals(values: np.ndarray, numbers: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return the sums of run lengths given as differences to the second last one; -1 if one is negative.

    Args:
        values: Numbers of all strings, int32; the first three of each string are absolute.
        numbers: Count of numbers in each string.
        owner: String index of each number.
    """
    # the first number belongs to no chain; the others are arranged in rows of two, with chains along the columns
    rows = numbers // 2
    first, row_of = np.cumsum(numbers) - numbers, np.cumsum(rows) - rows
    inside = np.ones(len(values), dtype=bool)
    inside[first[numbers > 0]] = False
    cells = (np.arange(len(values), dtype=np.int32) + np.repeat(2 * row_of - first - 1, numbers))[inside]
    chains = np.zeros((int(rows.sum()), 2), dtype=np.int32)
    chains.reshape(-1)[cells] = values[inside]
    sums = np.cumsum(chains, axis=0, dtype=np.int32)
    before = np.concatenate([np.zeros((1, 2), dtype=np.int32), sums])[row_of]
    runs = values.copy()
    runs[inside] = (sums - np.repeat(before, rows, axis=0)).reshape(-1)[cells]
    totals = np.zeros(len(numbers), dtype=np.int64)
    if len(runs):
        totals[numbers > 0] = np.add.reduceat(runs, first[numbers > 0], dtype=np.int64)
    totals[owner[runs < 0]] = -1
    return totals


def faulty_keypoints(keypoints: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, EntryError]]:
    """Yield index and fault of each object with invalid keypoints.

    Args:
        keypoints: x, y, visibility, float32 (N, K, 3).
        sizes: Width and height of each object's image, int64 (N, 2).
    """
    places, visible = keypoints[..., :2], keypoints[..., 2]
    limits = sizes[:, None, :]
    far = (places < -limits) | (places > 2 * limits)
    wrong = ~np.isfinite(places).all(-1) | (far.any(-1) & (visible > 0)) | ~np.isin(visible, (0, 1, 2))
    for index in np.flatnonzero(wrong.any(1)).tolist():
        detail = "a keypoint is not finite, far outside the image, or has a visibility other than 0, 1, 2"
        yield index, EntryError("keypoint entry", detail)
