"""COCO annotation files as arrays: boxes, masks and keypoints of a split, with everything that real files hold.

The JSON document is read once, turned into NumPy arrays and dropped: objects of Python would take ten times the memory
in every loading process. Category ids need not be contiguous; classes are numbered in the order of their ids.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fishnet.data.detection.entries import (
    EntryError,
    Fault,
    ImagePlace,
    ParsedObject,
    faulty_keypoints,
    faulty_outlines,
    is_id,
    parse_categories,
    parse_image,
    parse_object,
)
from fishnet.errors import FishnetError

NONE, POLYGONS, RLE = 0, 1, 2


@dataclass
class Outlines:
    """Segmentations of all objects: polygons in one array of numbers, run lengths as bytes."""

    kind: np.ndarray
    """uint8 (N,): NONE, POLYGONS or RLE."""
    values: np.ndarray
    """float64: x0 y0 x1 y1 ... of all polygons."""
    ends: np.ndarray
    """int64 (P,): where each polygon ends in `values`."""
    first: np.ndarray
    """int64 (N + 1,): the polygons of object i are those from first[i] to first[i + 1]."""
    runs: dict[int, bytes | np.ndarray]
    """Compressed (bytes) or plain (uint32 array) run lengths by object; they cover the image of the object exactly."""

    def polygons(self, index: int) -> list[np.ndarray]:
        """Return the polygons of an object."""
        cuts = [int(self.ends[p - 1]) if p else 0 for p in range(self.first[index], self.first[index + 1] + 1)]
        return [self.values[a:b] for a, b in pairwise(cuts)]

    def rle(self, index: int, height: int, width: int) -> dict[str, Any] | None:
        """Return an object's mask as compressed run lengths, or nothing where it has none."""
        from faster_coco_eval.core import mask as rle_of

        if self.kind[index] == RLE:
            counts = self.runs[index]
            if isinstance(counts, bytes):
                return {"size": [height, width], "counts": counts}
            return rle_of.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        if self.kind[index] == POLYGONS:
            shapes = [polygon.tolist() for polygon in self.polygons(index)]
            return rle_of.merge(rle_of.frPyObjects(shapes, height, width))
        return None


@dataclass
class CocoFile:
    """One annotation file. Objects stand in the order of their images; within an image, of the file."""

    path: Path
    classes: list[str]
    category_ids: np.ndarray
    """int64 (classes,), rising."""
    image_ids: np.ndarray
    file_names: list[str]
    widths: np.ndarray
    heights: np.ndarray
    object_ids: np.ndarray
    image_of: np.ndarray
    """int64 (N,): index of each object's image."""
    class_of: np.ndarray
    """int64 (N,): index of each object's class."""
    boxes: np.ndarray
    """float64 (N, 4): x, y, width, height in pixels, as in the file."""
    areas: np.ndarray
    crowd: np.ndarray
    """bool (N,): a region of many objects that nobody told apart."""
    outlines: Outlines
    keypoint_names: list[str] = field(default_factory=list)
    keypoints: np.ndarray | None = None
    """float32 (N, K, 3): x, y and 0 absent, 1 hidden, 2 visible."""
    problems: list[Fault] = field(default_factory=list)
    """What is wrong with objects and images; objects with a problem are not in the arrays."""
    left_out: list[Fault] = field(default_factory=list)
    """Objects whose box has no area. They are not in the arrays either, and no reason to stop: even COCO's own files
    hold some (train2017 two of them)."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __post_init__(self) -> None:
        self._first = np.searchsorted(self.image_of, np.arange(len(self) + 1))

    def objects(self, image: int) -> np.ndarray:
        """Return the indices of an image's objects, crowds included."""
        return np.arange(self._first[image], self._first[image + 1])

    def mask(self, index: int) -> dict[str, Any]:
        """Return an object's mask as run lengths; an object without one gets its box."""
        from faster_coco_eval.core import mask as rle_of

        image = self.image_of[index]
        height, width = int(self.heights[image]), int(self.widths[image])
        found = self.outlines.rle(index, height, width)
        if found is not None:
            return found
        return rle_of.frPyObjects([self.boxes[index].tolist()], height, width)[0]

    @property
    def without_outline(self) -> int:
        """Number of objects that are not crowds and have no segmentation."""
        return int(((self.outlines.kind == NONE) & ~self.crowd).sum())

    def class_counts(self) -> np.ndarray:
        """Return the number of objects of each class, crowds left out."""
        return np.bincount(self.class_of[~self.crowd], minlength=len(self.classes))


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file; objects that cannot be used are left out and named in `problems` or `left_out`.

    Raises:
        FishnetError: The file is missing, no JSON, or not of the format; names what is missing.
    """
    with _no_collection():
        return parse_coco(load_document(path), path)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the search for reference cycles: JSON holds none, and each search walks over millions of objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_coco(document: dict[str, Any], path: Path) -> CocoFile:
    """Do the same as `read_coco` with a document that `load_document` has read from the path."""
    classes, category_ids, keypoint_names = parse_categories(document["categories"], path)
    images, problems = _images(document["images"], path)
    places = {image["id"]: ImagePlace(i, image["width"], image["height"]) for i, image in enumerate(images)}
    class_of = {int(number): index for index, number in enumerate(category_ids)}
    objects, faults = _objects(document["annotations"], places, class_of, len(keypoint_names), path)
    objects.sort(key=lambda one: one.image)  # stable: within an image the order of the file
    widths = np.array([image["width"] for image in images], dtype=np.int64)
    heights = np.array([image["height"] for image in images], dtype=np.int64)
    objects, outlines, keypoints, more = _drawable(objects, np.stack([widths, heights], 1), len(keypoint_names), path)
    faults += more
    return CocoFile(
        path,
        classes,
        category_ids,
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        file_names=[image["file_name"] for image in images],
        widths=widths,
        heights=heights,
        object_ids=np.array([one.number for one in objects], dtype=np.int64),
        image_of=np.array([one.image for one in objects], dtype=np.int64),
        class_of=np.array([one.label for one in objects], dtype=np.int64),
        boxes=np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4),
        areas=np.array([one.area for one in objects], dtype=np.float64),
        crowd=np.array([one.crowd for one in objects], dtype=bool),
        outlines=outlines,
        keypoint_names=keypoint_names,
        keypoints=keypoints,
        problems=problems + [fault for fault in faults if fault.kind != _TOLERATED],
        left_out=[fault for fault in faults if fault.kind == _TOLERATED],
    )


_TOLERATED = "box without area"


def load_document(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file that has the three lists of COCO; FishnetError where it has not."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FishnetError(f"{path} does not exist; detection reads COCO annotations from there") from None
    except OSError as error:
        raise FishnetError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise FishnetError(f"{path} is no valid JSON ({error}); write it again") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise FishnetError(f"{path} has no list `{name}`; it is no COCO instances file")
    return document


def _images(entries: list[Any], path: Path) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Return the usable images, and what is wrong with the others."""
    seen: set[int] = set()
    kept, problems = [], []
    for position, entry in enumerate(entries):
        try:
            kept.append(parse_image(entry, seen))
        except EntryError as error:
            problems.append(_fault(error, path, "image", entry, position))
    return kept, problems


def _objects(
    entries: list[Any], images: dict[int, ImagePlace], classes: dict[int, int], keypoints: int, path: Path
) -> tuple[list[ParsedObject], list[Fault]]:
    """Return the usable objects, and what is wrong with the others."""
    seen: set[int] = set()
    kept, faults = [], []
    for position, entry in enumerate(entries):
        try:
            kept.append(parse_object(entry, images, classes, keypoints, seen))
        except EntryError as error:
            faults.append(_fault(error, path, "annotation", entry, position))
    return kept, faults


def _fault(error: EntryError, path: Path, what: str, entry: Any, position: int) -> Fault:
    """Return the fault of an entry, which is named by its id, or by its place in the list where it has none."""
    number = entry.get("id") if isinstance(entry, dict) else None
    name = f"{number}" if is_id(number) else f"number {position} of the list"
    return Fault(error.kind, f"{path.name}, {what} {name}", error.detail, number if is_id(number) else None)


def _drawable(
    objects: list[ParsedObject], sizes: np.ndarray, count: int, path: Path
) -> tuple[list[ParsedObject], Outlines, np.ndarray | None, list[Fault]]:
    """Return the objects whose outlines and keypoints are sound, those as arrays, and the faults of the others."""
    outlines, keypoints = _outlines(objects), _keypoints(objects, count) if count else None
    own = sizes[np.array([one.image for one in objects], dtype=np.int64)]
    owners = np.repeat(np.arange(len(objects)), np.diff(outlines.first))
    bad = dict(faulty_outlines(objects, outlines.values, outlines.ends, owners, own))
    if keypoints is not None:
        bad = {**dict(faulty_keypoints(keypoints, own)), **bad}
    if not bad:
        return objects, outlines, keypoints, []
    faults = [
        Fault(error.kind, f"{path.name}, annotation {objects[index].number}", error.detail, objects[index].number)
        for index, error in sorted(bad.items())
    ]
    kept = [one for index, one in enumerate(objects) if index not in bad]
    return kept, _outlines(kept), _keypoints(kept, count) if count else None, faults


def _outlines(objects: list[ParsedObject]) -> Outlines:
    kind = np.zeros(len(objects), dtype=np.uint8)
    counts = np.zeros(len(objects), dtype=np.int64)
    parts: list[np.ndarray] = []
    runs: dict[int, bytes | np.ndarray] = {}
    for index, one in enumerate(objects):
        if isinstance(one.outline, list):
            kind[index], counts[index] = POLYGONS, len(one.outline)
            parts += one.outline
        elif one.outline is not None:
            kind[index], runs[index] = RLE, one.outline
    values = np.concatenate(parts) if parts else np.zeros(0)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return Outlines(kind, values, ends, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), runs)


def _keypoints(objects: list[ParsedObject], count: int) -> np.ndarray:
    """Return the keypoints of every object; one without any gets absent ones."""
    result = np.zeros((len(objects), count, 3), dtype=np.float32)
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        for index, one in enumerate(objects):
            if one.keypoints is not None:
                result[index] = one.keypoints.reshape(count, 3)
    return result


def summarise(problems: list[Fault], first: int = 5) -> str:
    """Return counts by kind and the first few problems in words."""
    kinds = Counter(problem.kind for problem in problems)
    counts = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return f"{counts}; " + "; ".join(map(str, problems[:first])) + (" ..." if len(problems) > first else "")
