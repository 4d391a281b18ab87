"""Label maps from the outlines of COCO annotation files."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from fishnet.data.folders import image_folder
from fishnet.data.images import MISSING, image_shape
from fishnet.data.run_lengths import RunLengths, decode, of_box, of_counts, of_polygons
from fishnet.data.segmentation.coding import WIDE_IGNORE
from fishnet.errors import FishnetError
from fishnet.files import Json

BACKGROUND = "background"
_IGNORE = 255


def coco_files(root: Path) -> dict[str, Path]:
    """Return the annotation files of a COCO folder by split, `train` for `train2017`."""
    files = {path.stem.removeprefix("instances_"): path for path in sorted(root.glob("annotations/instances_*.json"))}
    short = {split: split.rstrip("0123456789") or split for split in files}
    unique = len(set(short.values())) == len(short)
    return {short[split] if unique else split: path for split, path in files.items()}


class CocoMaps:
    """Label maps of one COCO annotation file: index 0 is background, classes follow in the order of their ids.

    Larger objects are drawn first, so that smaller ones stay visible on them. Pixels of crowds are ignored where there
    is no object. Objects without a segmentation are ignored inside their box, as their outline is not known.

    Args:
        root: Data folder.
        split: Name of the split in messages.
        path: Annotation file.

    Raises:
        FishnetError: The file is damaged or incomplete.
    """

    def __init__(self, root: Path, split: str, path: Path) -> None:
        self.path = path
        try:
            document = json.loads(path.read_bytes())
            images, annotations, categories = (document[name] for name in ("images", "annotations", "categories"))
            categories = sorted(categories, key=lambda entry: entry["id"])
            self.classes = [BACKGROUND, *(str(entry["name"]) for entry in categories)]
            self.class_of = {entry["id"]: number for number, entry in enumerate(categories, 1)}
            self.images: list[Json] = images
            self.names = [str(image["file_name"]) for image in images]
            self.objects: dict[int, list[Json]] = defaultdict(list)
            for entry in annotations:
                self.objects[entry["image_id"]].append(entry)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if len(set(self.classes)) < len(self.classes):
            raise FishnetError(f"{path} has categories of the same name, or one named {BACKGROUND!r}; rename them")
        folder = image_folder(root, path.stem.removeprefix("instances_"), self.names)
        self.paths = [folder / name for name in self.names]
        self.names = [name if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
                      else PurePosixPath(name).name for name in self.names]  # fmt: skip
        boxes = sum(not entry.get("segmentation") for entry in annotations)
        text = f"{split}: {boxes} objects have no segmentation; their boxes are ignored, as their outline is not known"
        self.notes = [text] if boxes else []

    @property
    def ignored(self) -> int:
        """Value of ignored pixels."""
        return _IGNORE if len(self.classes) <= _IGNORE else WIDE_IGNORE

    def label_map(self, index: int) -> np.ndarray:
        """Return the label map (H, W) of an image, uint8, or int64 for more than 255 classes.

        Raises:
            FishnetError: An annotation is damaged, or the image has another size.
        """
        image = self.images[index]
        layers: list[tuple[int, int, np.ndarray]] = []
        try:
            size = height, width = int(image["height"]), int(image["width"])
            for entry in self.objects.get(image["id"], []):
                outline = bool(entry.get("segmentation"))
                mask = decode([_runs(entry, *size)], *size)[0].numpy().astype(bool)
                ignored = not outline or bool(entry.get("iscrowd"))
                layers.append((self.ignored if ignored else self.class_of[entry["category_id"]], int(mask.sum()), mask))
        except FishnetError:
            raise
        except Exception as error:  # the decoder of run lengths raises several kinds
            raise self._damaged(f"image {image.get('id')}: {type(error).__name__}: {error}") from error
        self._check_size(index, (width, height))
        labels = np.zeros(size, np.uint8 if self.ignored == _IGNORE else np.int64)
        layers.sort(key=lambda layer: (layer[0] != self.ignored, -layer[1]))
        for value, _, mask in layers:
            labels[mask] = value
        return labels

    def _check_size(self, index: int, stated: tuple[int, int]) -> None:
        path = self.paths[index]
        if not path.is_file():
            raise FishnetError(f"cannot use the image {path}: {MISSING}; download it, or remove it from {self.path}")
        shape = image_shape(path)
        if stated not in (shape.upright, shape.stored):
            found = f"{shape.upright[0]}x{shape.upright[1]}"
            raise FishnetError(f"{path} has {found} pixels, but {self.path} states {stated[0]}x{stated[1]}; correct it")

    def _damaged(self, reason: str) -> FishnetError:
        return FishnetError(
            f"{self.path} cannot be converted ({reason}); `fishnet data check detection DIR` lists its problems"
        )


def _runs(entry: Json, height: int, width: int) -> RunLengths:
    """Return the outline of an object as run lengths, its box if it has none."""
    outline = entry.get("segmentation")
    if not outline:
        return of_box(entry["bbox"], height, width)
    if isinstance(outline, list):
        return of_polygons(outline, height, width)
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"the mask of annotation {entry.get('id')} is for an image of another size")
    counts = outline["counts"]
    if isinstance(counts, list):
        return of_counts(counts, height, width)
    return {"size": [height, width], "counts": counts}
