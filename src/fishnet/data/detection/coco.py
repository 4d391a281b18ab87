"""COCO annotation files as arrays: boxes, masks and keypoints of a split (https://cocodataset.org/#format-data).

The JSON document is read once, converted to NumPy arrays and dropped: Python objects would take ten times the memory in
every loading process. Category ids need not be contiguous; classes are numbered in the order of their ids.
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

import numpy as np

from fishnet.data import run_lengths
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
from fishnet.data.detection.types import AnnotationEntry, Document, ImageEntry
from fishnet.data.levels import ANNOTATED
from fishnet.data.run_lengths import RunLengths
from fishnet.errors import FishnetError

NONE, POLYGONS, RLE = 0, 1, 2


@dataclass
class Outlines:
    """Segmentations of all N objects: polygons in one array, run lengths as bytes."""

    kind: np.ndarray
    """NONE, POLYGONS or RLE, uint8 (N,)."""
    values: np.ndarray
    """x0 y0 x1 y1 ... of all polygons, float64."""
    ends: np.ndarray
    """End of each polygon in `values`, int64 (P,)."""
    first: np.ndarray
    """First polygon of each object, int64 (N + 1,): object i has the polygons first[i] to first[i + 1] (exclusive)."""
    runs: dict[int, bytes | np.ndarray]
    """Compressed (bytes) or plain (uint32 array) run lengths by object index; they cover the image exactly."""

    def polygons(self, index: int) -> list[np.ndarray]:
        """Return the polygons of an object."""
        cuts = [int(self.ends[p - 1]) if p else 0 for p in range(self.first[index], self.first[index + 1] + 1)]
        return [self.values[a:b] for a, b in pairwise(cuts)]

    def rle(self, index: int, height: int, width: int) -> RunLengths | None:
        """Return the mask of an object as compressed run lengths; None if it has no segmentation."""
        if self.kind[index] == RLE:
            counts = self.runs[index]
            if isinstance(counts, bytes):
                return {"size": [height, width], "counts": counts}
            return run_lengths.of_counts(counts.tolist(), height, width)
        if self.kind[index] == POLYGONS:
            return run_lengths.of_polygons([polygon.tolist() for polygon in self.polygons(index)], height, width)
        return None


@dataclass
class CocoFile:
    """Contents of one annotation file: N objects, ordered by image, and within an image as in the file."""

    path: Path
    classes: list[str]
    category_ids: np.ndarray
    """Sorted ids, int64 (classes,)."""
    image_ids: np.ndarray
    file_names: list[str]
    widths: np.ndarray
    heights: np.ndarray
    object_ids: np.ndarray
    image_of: np.ndarray
    """Image index of each object, int64 (N,)."""
    class_of: np.ndarray
    """Class index of each object, int64 (N,)."""
    boxes: np.ndarray
    """x, y, width, height in pixels, as in the file, float64 (N, 4)."""
    areas: np.ndarray
    crowd: np.ndarray
    """Whether an object is a crowd, a region of many objects that are not separated, bool (N,)."""
    outlines: Outlines
    keypoint_names: list[str] = field(default_factory=list)
    keypoints: np.ndarray | None = None
    """x, y and visibility (0 absent, 1 hidden, 2 visible), float32 (N, K, 3)."""
    annotated: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Class indices that were annotated in an image, by its index; in an image that is not listed, all were."""
    problems: list[Fault] = field(default_factory=list)
    """Faults of objects and images; these are not in the arrays."""
    left_out: list[Fault] = field(default_factory=list)
    """Objects whose box has no area; not in the arrays either. They are tolerated, since COCO's own files contain some
    (two in train2017)."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __post_init__(self) -> None:
        self._first = np.searchsorted(self.image_of, np.arange(len(self) + 1))

    def objects(self, image: int) -> np.ndarray:
        """Return the indices of the objects of an image, including crowds."""
        return np.arange(self._first[image], self._first[image + 1])

    def mask(self, index: int) -> RunLengths:
        """Return the mask of an object as run lengths; its box if it has no segmentation."""
        image = self.image_of[index]
        height, width = int(self.heights[image]), int(self.widths[image])
        found = self.outlines.rle(index, height, width)
        if found is not None:
            return found
        return run_lengths.of_box(self.boxes[index].tolist(), height, width)

    @property
    def without_outline(self) -> int:
        """Number of objects that are not crowds and have no segmentation."""
        return int(((self.outlines.kind == NONE) & ~self.crowd).sum())

    @property
    def has_outlines(self) -> bool:
        """Whether any object that is not a crowd has a segmentation."""
        return bool((self.outlines.kind[~self.crowd] != NONE).any())

    def class_counts(self) -> np.ndarray:
        """Return the number of objects per class without crowds, int64 (classes,)."""
        return np.bincount(self.class_of[~self.crowd], minlength=len(self.classes))


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file; unusable objects are excluded and listed in `problems` or `left_out`.

    Raises:
        FishnetError: The file is missing, not JSON or not in COCO format; the message names the missing part.
    """
    with _no_collection():
        return parse_coco(load_document(path), path)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable cyclic garbage collection: JSON has no cycles, and each pass would visit millions of objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_coco(document: Document, path: Path) -> CocoFile:
    """Like `read_coco`, for a document that `load_document` has read from the path."""
    classes, category_ids, keypoint_names = parse_categories(document["categories"], path)
    class_of = {int(number): index for index, number in enumerate(category_ids)}
    images, problems = _images(document["images"], class_of, path)
    places = {image["id"]: ImagePlace(i, image["width"], image["height"]) for i, image in enumerate(images)}
    objects, faults = _objects(document["annotations"], places, class_of, len(keypoint_names), path)
    objects.sort(key=lambda one: one.image)  # stable, so objects of an image keep the order of the file
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
        annotated={
            place: tuple(sorted(class_of[number] for number in image[ANNOTATED]))
            for place, image in enumerate(images)
            if image.get(ANNOTATED) is not None
        },
        problems=problems + [fault for fault in faults if fault.kind != _TOLERATED],
        left_out=[fault for fault in faults if fault.kind == _TOLERATED],
    )


_TOLERATED = "box without area"


def annotated_only(document: Document) -> Document:
    """Return a document without the images whose objects were not annotated, which is not the same as empty images."""
    left_out = [image for image in document["images"] if isinstance(image, dict) and image.get(ANNOTATED) == []]
    ids = {image["id"] for image in left_out if is_id(image.get("id"))}
    if not left_out:
        return document
    images = [image for image in document["images"] if not isinstance(image, dict) or image.get(ANNOTATED) != []]
    annotations = [
        one for one in document["annotations"] if not isinstance(one, dict) or one.get("image_id") not in ids
    ]
    return {**document, "images": images, "annotations": annotations}


def load_document(path: Path) -> Document:
    """Return the JSON document of an annotation file; raises FishnetError if it lacks one of COCO's three lists."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FishnetError(f"the annotation file {path} does not exist") from None
    except OSError as error:
        raise FishnetError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise FishnetError(f"{path} is not valid JSON ({error}); create it again") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise FishnetError(f"{path} has no list `{name}`; it is not a COCO instances file")
    return document


def _images(entries: list[ImageEntry], classes: dict[int, int], path: Path) -> tuple[list[ImageEntry], list[Fault]]:
    """Return the valid images and the faults of the others."""
    seen: set[int] = set()
    kept, problems = [], []
    for position, entry in enumerate(entries):
        try:
            kept.append(parse_image(entry, classes, seen))
        except EntryError as error:
            problems.append(_fault(error, path, "image", entry, position))
    return kept, problems


def _objects(
    entries: list[AnnotationEntry],
    images: dict[int, ImagePlace],
    classes: dict[int, int],
    keypoints: int,
    path: Path,
) -> tuple[list[ParsedObject], list[Fault]]:
    """Return the valid objects and the faults of the others."""
    seen: set[int] = set()
    kept, faults = [], []
    for position, entry in enumerate(entries):
        try:
            kept.append(parse_object(entry, images, classes, keypoints, seen))
        except EntryError as error:
            faults.append(_fault(error, path, "annotation", entry, position))
    return kept, faults


def _fault(error: EntryError, path: Path, what: str, entry: object, position: int) -> Fault:
    """Return the fault of an entry, identified by its id, or by its index in the list if it has none."""
    number = entry.get("id") if isinstance(entry, dict) else None
    name = f"{number}" if is_id(number) else f"at index {position}"
    return Fault(error.kind, f"{path.name}, {what} {name}", error.detail, number if is_id(number) else None)


def _drawable(
    objects: list[ParsedObject], sizes: np.ndarray, count: int, path: Path
) -> tuple[list[ParsedObject], Outlines, np.ndarray | None, list[Fault]]:
    """Return the objects with valid outlines and keypoints, these as arrays, and the faults of the others."""
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
    """Return the keypoints of all objects, float32 (N, count, 3); zeros (absent) for objects without keypoints."""
    result = np.zeros((len(objects), count, 3), dtype=np.float32)
    with np.errstate(over="ignore"):  # overflow gives infinity, which is rejected later
        for index, one in enumerate(objects):
            if one.keypoints is not None:
                result[index] = one.keypoints.reshape(count, 3)
    return result


def summarize(problems: list[Fault], first: int = 5) -> str:
    """Describe problems by counts per kind and the first few in full."""
    kinds = Counter(problem.kind for problem in problems)
    counts = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return f"{counts}; " + "; ".join(map(str, problems[:first])) + (" ..." if len(problems) > first else "")
