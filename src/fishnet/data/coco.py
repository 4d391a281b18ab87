"""COCO annotation files as arrays: boxes, masks and keypoints of a split, with everything that real files hold.

The JSON document is read once, turned into NumPy arrays and dropped: objects of Python would take ten times the memory
in every loading process. Category ids need not be contiguous; classes are numbered in the order of their ids.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

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
    runs: dict[int, Any]
    """Compressed (bytes) or plain (int array) run lengths, and size, by object."""

    def polygons(self, index: int) -> list[np.ndarray]:
        """Return the polygons of an object."""
        cuts = [int(self.ends[p - 1]) if p else 0 for p in range(self.first[index], self.first[index + 1] + 1)]
        return [self.values[a:b] for a, b in pairwise(cuts)]

    def rle(self, index: int, height: int, width: int) -> dict[str, Any] | None:
        """Return an object's mask as compressed run lengths, or nothing where it has none."""
        from faster_coco_eval.core import mask as rle_of

        if self.kind[index] == RLE:
            counts, size = self.runs[index]
            if isinstance(counts, bytes):
                return {"size": list(size), "counts": counts}
            return rle_of.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
        if self.kind[index] == POLYGONS:
            shapes = [polygon.tolist() for polygon in self.polygons(index) if len(polygon) >= 6]
            return rle_of.merge(rle_of.frPyObjects(shapes, height, width)) if shapes else None
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


@dataclass(frozen=True)
class Fault:
    """Something in an annotation file that no detector can be trained on."""

    kind: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file; objects that cannot be used are left out and named in `problems`.

    Raises:
        FishnetError: The file is missing, no JSON, or not of the format; names what is missing.
    """
    document = _load(path)
    classes, category_ids, keypoint_names = _categories(document, path)
    images, problems = _images(document, path)
    objects, found = _objects(document["annotations"], images, category_ids, path)
    problems += found
    order = np.argsort(objects["image"], kind="stable")
    kept = [objects["raw"][i] for i in order]
    count = len(keypoint_names)
    return CocoFile(
        path,
        classes,
        category_ids,
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        file_names=[image["file_name"] for image in images],
        widths=np.array([image["width"] for image in images], dtype=np.int64),
        heights=np.array([image["height"] for image in images], dtype=np.int64),
        object_ids=np.array([raw["id"] for raw in kept], dtype=np.int64),
        image_of=objects["image"][order],
        class_of=objects["class"][order],
        boxes=np.array([raw["bbox"] for raw in kept], dtype=np.float64).reshape(-1, 4),
        areas=np.array([_area(raw) for raw in kept], dtype=np.float64),
        crowd=np.array([bool(raw.get("iscrowd", 0)) for raw in kept], dtype=bool),
        outlines=_outlines(kept),
        keypoint_names=keypoint_names,
        keypoints=_keypoints(kept, count) if count else None,
        problems=problems,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FishnetError(f"{path} does not exist; detection reads COCO annotations from there") from None
    except ValueError as error:
        raise FishnetError(f"{path} is no valid JSON ({error}); write it again") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise FishnetError(f"{path} has no list `{name}`; it is no COCO instances file")
    return document


def _categories(document: dict[str, Any], path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Return names, ids in rising order, and the keypoints that the categories name."""
    entries = document["categories"]
    if not entries:
        raise FishnetError(f"{path} lists no categories: there is nothing to find")
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise FishnetError(f"{path}: every category needs an integer `id` and a `name`, not {str(entry)[:80]}")
    entries = sorted(entries, key=lambda entry: entry["id"])
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise FishnetError(f"{path}: category id {next(i for i in ids if ids.count(i) > 1)} is used twice")
    named = [entry["keypoints"] for entry in entries if entry.get("keypoints")]
    if any(names != named[0] for names in named[1:]):
        raise FishnetError(f"{path}: categories with different keypoints cannot be trained together")
    return [entry["name"] for entry in entries], np.array(ids, dtype=np.int64), list(named[0]) if named else []


def _images(document: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Return the usable images, and what is wrong with the others."""
    seen: set[int] = set()
    kept, problems = [], []
    for image in document["images"]:
        number = image.get("id") if isinstance(image, dict) else None
        where = f"{path.name}, image {number}"
        if type(number) is not int or not isinstance(image.get("file_name"), str):
            problems.append(Fault("image entry", where, "has no integer `id` or no `file_name`"))
        elif number in seen:
            problems.append(Fault("duplicate image id", where, f"the id is used twice ({image['file_name']})"))
        elif not all(type(image.get(side)) is int and image[side] > 0 for side in ("width", "height")):
            problems.append(Fault("image entry", where, "has no positive `width` and `height`"))
        else:
            kept.append(image)
        if type(number) is int:
            seen.add(number)
    return kept, problems


def _objects(
    entries: list[dict[str, Any]], images: list[dict[str, Any]], category_ids: np.ndarray, path: Path
) -> tuple[dict[str, Any], list[Fault]]:
    """Return the usable objects with their image and class numbers, and what is wrong with the others."""
    image_of = {image["id"]: number for number, image in enumerate(images)}
    class_of = {int(number): index for index, number in enumerate(category_ids)}
    seen: set[Any] = set()
    raw, numbers, classes, problems = [], [], [], []
    for position, entry in enumerate(entries):
        name = entry.get("id") if isinstance(entry, dict) else None
        problem = _object_problem(entry, name, seen, image_of, class_of, images)
        if problem is not None:
            where = f"{path.name}, annotation {position if name is None else name}"
            problems.append(Fault(problem[0], where, problem[1]))
            continue
        seen.add(name)
        raw.append(entry)
        numbers.append(image_of[entry["image_id"]])
        classes.append(class_of[entry["category_id"]])
    arrays = {"image": np.array(numbers, dtype=np.int64), "class": np.array(classes, dtype=np.int64)}
    return {"raw": raw, **arrays}, problems


def _object_problem(
    entry: Any,
    name: Any,
    seen: set[Any],
    image_of: dict[int, int],
    class_of: dict[int, int],
    images: list[dict[str, Any]],
) -> tuple[str, str] | None:
    """Return kind and description of what makes an object unusable, or nothing."""
    if type(name) is not int:
        return "annotation entry", "has no integer `id`"
    if name in seen:
        return "duplicate annotation id", "the id is used twice"
    if entry.get("image_id") not in image_of:
        return "unknown image id", f"image {entry.get('image_id')} is not in the list of images"
    if entry.get("category_id") not in class_of:
        return "unknown category id", f"category {entry.get('category_id')} is not in the list of categories"
    image = images[image_of[entry["image_id"]]]
    if problem := _box_problem(entry.get("bbox"), image["width"], image["height"]):
        return problem
    return _outline_problem(entry.get("segmentation"), image["width"], image["height"])


def _box_problem(box: Any, width: int, height: int) -> tuple[str, str] | None:
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return "box entry", f"`bbox` must be [x, y, width, height], not {str(box)[:60]}"
    if not all(np.isfinite(box)):
        return "box not finite", f"the box {box} holds NaN or infinity"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return "box without area", f"the box {box} has no positive width and height"
    # half a pixel beyond the border is rounding; the border itself is in COCO's own files
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box outside", f"the box {box} lies outside the image of {width}x{height} pixels"
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        return "box beyond the border", f"the box {box} reaches beyond the image of {width}x{height} pixels"
    return None


def _outline_problem(outline: Any, width: int, height: int) -> tuple[str, str] | None:
    if not outline:
        return None
    if isinstance(outline, dict):
        size = outline.get("size")
        if size != [height, width]:
            return "mask size", f"the mask is made for {size}, the image has [{height}, {width}] (height, width)"
        return None
    if not isinstance(outline, list):
        return "mask entry", "`segmentation` is neither polygons nor run lengths"
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
            points = len(polygon) // 2 if isinstance(polygon, list) else 0
            return "polygon", f"a polygon has {points} points; 3 are the fewest"
    return None


def _area(raw: dict[str, Any]) -> float:
    """Return the area that the file states, else that of the box."""
    return float(raw["area"]) if isinstance(raw.get("area"), int | float) else float(raw["bbox"][2] * raw["bbox"][3])


def _outlines(entries: list[dict[str, Any]]) -> Outlines:
    kind = np.zeros(len(entries), dtype=np.uint8)
    counts = np.zeros(len(entries), dtype=np.int64)
    parts: list[np.ndarray] = []
    runs: dict[int, Any] = {}
    for index, entry in enumerate(entries):
        outline = entry.get("segmentation")
        if isinstance(outline, dict):
            kind[index] = RLE
            lengths = outline["counts"]
            coded = lengths.encode() if isinstance(lengths, str) else np.array(lengths, dtype=np.uint32)
            runs[index] = (coded, tuple(outline["size"]))
        elif outline:
            kind[index], counts[index] = POLYGONS, len(outline)
            parts += [np.array(polygon, dtype=np.float64) for polygon in outline]
    values = np.concatenate(parts) if parts else np.zeros(0)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return Outlines(kind, values, ends, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), runs)


def _keypoints(entries: list[dict[str, Any]], count: int) -> np.ndarray:
    """Return the keypoints of every object; one without any gets absent ones."""
    result = np.zeros((len(entries), count, 3), dtype=np.float32)
    for index, entry in enumerate(entries):
        points = entry.get("keypoints")
        if points and len(points) == 3 * count:
            result[index] = np.array(points, dtype=np.float32).reshape(count, 3)
    return result


def summarise(problems: list[Fault], first: int = 5) -> str:
    """Return counts by kind and the first few problems in words."""
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    counts = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return f"{counts}; " + "; ".join(map(str, problems[:first])) + (" ..." if len(problems) > first else "")
