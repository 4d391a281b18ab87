"""Panoptic segmentation in COCO's format: a PNG of segment ids per image, and a JSON file that describes the segments.

https://cocodataset.org/#format-data, section "Panoptic Segmentation". The color of a pixel is the id of its segment as
R + 256 G + 256^2 B; 0 is void, a pixel without segment. `NAME.json` lists images, categories (with `isthing`) and per
image the file name of its PNG in the folder `NAME/` beside it, with `segments_info`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
from PIL import Image

from fishnet.errors import FishnetError
from fishnet.files import Json, atomic_path, write_json
from fishnet.runner.names import UniqueStems

VOID = 0
"""Id of pixels without segment."""
MOST_SEGMENTS = 2**24
"""Ids are below this: a PNG stores them in three bytes."""


class Category(TypedDict):
    """A class of segments."""

    id: int
    name: str
    isthing: int
    """1 for countable objects (things), 0 for regions such as sky (stuff)."""
    color: NotRequired[list[int]]


class Segment(TypedDict):
    """A region of one object, or all of a stuff class in an image."""

    id: int
    category_id: int
    area: int
    """Number of pixels."""
    bbox: list[int]
    """x, y, width, height of the bounding box in pixels."""
    iscrowd: int
    """1 for a group of objects that are not separated."""


@dataclass(frozen=True)
class PanopticMap:
    """Segments of one image.

    Attributes:
        ids: Segment of every pixel, int32 (H, W); 0 is void.
        segments: Description of every segment.
    """

    ids: np.ndarray
    segments: list[Segment]


@dataclass(frozen=True)
class PanopticImage:
    """An image of a panoptic file."""

    id: int
    file_name: str
    width: int
    height: int
    map_file: str
    """File name of its PNG."""
    segments: list[Json]
    """`segments_info` as in the file."""


class PanopticFile:
    """Annotations of a panoptic data set, or predictions for one; see `read_panoptic`.

    Attributes:
        path: JSON file.
        folder: Folder of the PNG files.
        categories: Classes.
        images: Images that have segments, in the order of the file.
    """

    def __init__(self, path: Path, folder: Path, categories: list[Category], images: list[PanopticImage]) -> None:
        self.path, self.folder, self.categories, self.images = path, folder, categories, images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> PanopticMap:
        """Return the segments of an image.

        Raises:
            FishnetError: The PNG is missing, or size or ids differ from those in the JSON file.
        """
        entry = self.images[index]
        path = self.folder / entry.map_file
        try:
            with Image.open(path) as image:
                ids = segment_ids(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise FishnetError(f"{path} cannot be read: {error}; {self.path} refers to it") from error
        except FishnetError as error:
            raise FishnetError(f"{path}: {error}") from error
        if ids.shape != (entry.height, entry.width):
            raise FishnetError(
                f"{path} has {ids.shape[1]}x{ids.shape[0]} pixels, but {self.path} states {entry.width}x{entry.height}"
            )
        try:
            return described(ids, entry.segments, {category["id"] for category in self.categories})
        except FishnetError as error:
            raise FishnetError(f"{path}: {error}") from error


def described(ids: np.ndarray, segments: Iterable[Json], categories: set[int]) -> PanopticMap:
    """Return a panoptic map with checked segments, whose area and bounding box are those of the pixels.

    Args:
        ids: Segment of every pixel, integers (H, W).
        segments: `id`, `category_id` and optionally `iscrowd` of every segment.
        categories: Ids of the categories that exist.

    Raises:
        FishnetError: The ids differ from those of the pixels, or a category is unknown.
    """
    ids = check_ids(ids)
    boxes = _boxes(ids)
    found: dict[int, Segment] = {}
    for segment in segments:
        try:
            number, category, crowd = int(segment["id"]), int(segment["category_id"]), int(segment.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FishnetError(f"segment {segment} lacks a whole number as id or category_id; correct it") from None
        if number in found:
            raise FishnetError(f"segment {number} is listed twice; segments of an image have different ids")
        if number not in boxes:
            raise FishnetError(f"segment {number} is listed, but no pixel has its id; remove it or correct the PNG")
        if category not in categories:
            raise FishnetError(f"segment {number} has the unknown category {category}; add it to the categories")
        area, box = boxes[number]
        found[number] = {"id": number, "category_id": category, "area": area, "bbox": box, "iscrowd": crowd}
    if unlisted := sorted(set(boxes) - set(found)):
        area, _ = boxes[unlisted[0]]
        raise FishnetError(f"{area} pixels have the id {unlisted[0]}, which no segment has; list it, or use 0 for void")
    return PanopticMap(ids, list(found.values()))


def check_ids(ids: np.ndarray) -> np.ndarray:
    """Return segment ids as int32.

    Raises:
        FishnetError: An id is negative or does not fit into 24 bits.
    """
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < MOST_SEGMENTS:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise FishnetError(
            f"segment id {wrong} does not fit into the 24 bits of a panoptic PNG; number the segments of each image "
            f"from 1 (at most {MOST_SEGMENTS - 1})"
        )
    return ids.astype(np.int32)


def _boxes(ids: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Return area and bounding box (x, y, width, height) of every id except void."""
    flat = ids.ravel()
    # sorting runs of equal ids is many times faster than sorting pixels
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])[: flat.size])
    values, inverse = np.unique(flat[starts], return_inverse=True)
    places = np.repeat(inverse, np.diff(starts, append=flat.size)).reshape(ids.shape)
    areas = np.bincount(places.ravel(), minlength=len(values))
    height, width = ids.shape
    in_row, in_column = np.zeros((len(values), height), bool), np.zeros((len(values), width), bool)
    in_row[places, np.arange(height)[:, None]] = True
    in_column[places, np.arange(width)] = True
    found: dict[int, tuple[int, list[int]]] = {}
    for value, area, rows, columns in zip(values.tolist(), areas.tolist(), in_row, in_column, strict=True):
        if value != VOID:
            y, x = np.flatnonzero(rows), np.flatnonzero(columns)
            corner = [int(x[0]), int(y[0])]
            found[value] = area, [*corner, int(x[-1]) + 1 - corner[0], int(y[-1]) + 1 - corner[1]]
    return found


def segment_ids(image: Image.Image) -> np.ndarray:
    """Return the segment ids, int32 (H, W), of a panoptic PNG.

    Raises:
        FishnetError: The image is not RGB.
    """
    if image.mode != "RGB":
        raise FishnetError(f"a panoptic PNG must be RGB (id = R + 256 G + 65536 B), not {image.mode}; convert it")
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def id_image(ids: np.ndarray) -> Image.Image:
    """Return the panoptic PNG of segment ids (H, W).

    Raises:
        FishnetError: An id does not fit into 24 bits.
    """
    ids = check_ids(ids)
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8))


def read_panoptic(path: Path, folder: Path | None = None) -> PanopticFile:
    """Read a panoptic JSON file; the PNG files are read one by one.

    Args:
        path: JSON file.
        folder: Folder of the PNG files; None: the one beside the JSON file with its name.

    Raises:
        FishnetError: The file is missing or not in the format.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FishnetError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FishnetError(f"{path} is not valid JSON ({error}); create it again") from error
    lists = [document.get(name) if isinstance(document, dict) else None for name in ("images", "annotations")]
    if not all(isinstance(one, list) for one in lists):
        raise FishnetError(f"{path} is no panoptic file: it needs the lists `images`, `annotations` and `categories`")
    try:
        images = {int(image["id"]): image for image in document["images"]}
        entries = [_entry(annotation, images[int(annotation["image_id"])]) for annotation in document["annotations"]]
    except KeyError as error:
        missing = f"an image or annotation lacks {error}, or the image of an annotation is not listed"
        raise FishnetError(f"{path}: {missing}") from None
    except (TypeError, ValueError) as error:
        raise FishnetError(f"{path}: an image or annotation has an unusable value ({error})") from error
    categories = check_categories(document.get("categories"), str(path))
    return PanopticFile(path, path.with_suffix("") if folder is None else folder, categories, entries)


def _entry(annotation: Json, image: Json) -> PanopticImage:
    name, segments = annotation["file_name"], annotation["segments_info"]
    if not isinstance(name, str) or not isinstance(segments, list):
        raise TypeError("file_name must be a text, segments_info a list")
    file_name = str(image.get("file_name", ""))
    return PanopticImage(int(image["id"]), file_name, int(image["width"]), int(image["height"]), name, segments)


def check_categories(categories: object, name: str) -> list[Category]:
    """Return the categories of a panoptic file.

    Args:
        categories: Content of `categories`.
        name: Name of the file in messages.

    Raises:
        FishnetError: There are none, or one lacks id, name or `isthing`, or two have the same id.
    """
    if not isinstance(categories, list) or not categories:
        raise FishnetError(f"{name} has no categories; list them as {{id, name, isthing}}")
    for one in categories:
        if not isinstance(one, dict) or type(one.get("id")) is not int or not isinstance(one.get("name"), str):
            raise FishnetError(f"{name}: category {one} needs a whole number as id and a name")
        if one.get("isthing") not in (0, 1):
            raise FishnetError(f"{name}: category {one['name']!r} needs `isthing`: 1 for objects, 0 for stuff")
    numbers = [one["id"] for one in categories]
    if len(set(numbers)) < len(numbers):
        raise FishnetError(f"{name}: two categories have the same id; ids must be unique")
    return cast(list[Category], categories)


class PanopticWriter:
    """Write panoptic maps image by image: `NAME/*.png` at once, and `NAME.json` by `finish`.

    Args:
        path: JSON file to write.
        categories: Classes.
    """

    def __init__(self, path: Path, categories: Sequence[Category]) -> None:
        self.path, self.folder = path, path.with_suffix("")
        self.categories = check_categories(list(categories), str(path))
        self._images: list[Json] = []
        self._annotations: list[Json] = []
        self._names = UniqueStems()

    def add(self, image_id: int, file_name: str, panoptic: PanopticMap) -> Path:
        """Write the PNG of one image and return its path.

        Args:
            image_id: Id of the image.
            file_name: File name of the image; the PNG has its stem, with a number if it is taken.
            panoptic: Segments of the image.

        Raises:
            FishnetError: An id does not fit into 24 bits, or segments and pixels are inconsistent.
        """
        checked = described(panoptic.ids, cast(list[Json], panoptic.segments), {one["id"] for one in self.categories})
        name = f"{self._names.of(file_name)}.png"
        with atomic_path(self.folder / name) as partial:
            id_image(checked.ids).save(partial, "PNG")
        height, width = checked.ids.shape
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": checked.segments})
        return self.folder / name

    def finish(self) -> Path:
        """Write the JSON file and return its path."""
        document = {"images": self._images, "annotations": self._annotations, "categories": self.categories}
        write_json(self.path, document, indent=None)
        return self.path
