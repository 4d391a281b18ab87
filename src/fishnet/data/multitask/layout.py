"""Read images with labels of up to three levels, from one folder or from several single-task folders together.

Each level is read as its own task reads it: classes as in classification, boxes and outlines as in detection, label
maps as in segmentation. Images of the same path are one image, with the levels that each of them has.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from fishnet.data.classification.layouts import list_split, resolve_split
from fishnet.data.detection.coco import NONE, load_document
from fishnet.data.detection.dataset import DetectionDataset, annotation_file, open_detection
from fishnet.data.folders import all_files, check_root, image_files, image_folder
from fishnet.data.images import bad_image, read_image
from fishnet.data.levels import ANNOTATED, IGNORE, LEVELS, ImageLabels, Level, LevelClasses, ObjectLabels
from fishnet.data.segmentation.dataset import SegmentationDataset, open_segmentation
from fishnet.data.segmentation.layouts import layout_of
from fishnet.data.segmentation.layouts import resolve_split as resolve_pixel_split
from fishnet.errors import FishnetError, UsageError, counted, did_you_mean

LAYOUT = (
    "DIR/annotations/instances_<split>.json with DIR/<split>/images/, and DIR/<split>/labels/ with DIR/classes.json; "
    "or single-task folders as image=DIR1 region=DIR2 pixel=DIR3"
)
BadImages = Literal["stop", "skip"]
_NONE = -1


class Source(NamedTuple):
    """A data folder and the levels that are read from it."""

    root: Path
    level: Level | None
    """One level, or None for all that the folder has."""

    def __str__(self) -> str:
        return f"{self.level}={self.root}" if self.level else str(self.root)


def parse_sources(data: str | Path | Sequence[str | Path]) -> list[Source]:
    """Return the folders that `--data` names: folders, or LEVEL=DIR to take a single level from one.

    Args:
        data: A folder, LEVEL=DIR, several of them, or a text with several of them, as `image=DIR1,region=DIR2`.

    Raises:
        UsageError: There is no folder, or a level is unknown.
    """
    given = _SEVERAL.split(str(data).strip()) if isinstance(data, str | Path) else list(data)
    sources: list[Source] = []
    for text in filter(None, given):
        name, equals, folder = str(text).partition("=")
        if equals and name in LEVELS:
            if not folder:
                raise UsageError(f"--data {text}: a folder is missing after {name}=")
            sources.append(Source(Path(folder), next(level for level in LEVELS if level == name)))
        elif equals and re.fullmatch(r"\w+", name) and not Path(text).exists():
            raise UsageError(f"--data {text}: unknown level {name!r}.{did_you_mean(name, LEVELS)} {_KNOWN}")
        else:
            sources.append(Source(Path(text), None))
    if not sources:
        raise UsageError(f"--data needs a folder: {LAYOUT}")
    return sources


_SEVERAL = re.compile(rf"[,\s]+(?=(?:{'|'.join(LEVELS)})=)")
_KNOWN = f"Levels are {', '.join(get_args(Level))}"


class _Part(NamedTuple):
    """Labels of one level from one folder."""

    level: Level
    place: str
    """Folder or file, for messages."""
    classes: list[str]
    paths: list[Path]
    labels: list[int]
    """Class index of each image, or its index in the data set of the level."""


@dataclass
class MultitaskSplit:
    """Images of one split with the labels that each of them has; created by `open_multitask`.

    Attributes:
        name: Name of the split.
        classes: Class names of each level.
        paths: Path of each of the N images.
        labels: Class index of each image, -1 without a class, int64 (N,).
        regions: Data sets with boxes and outlines.
        region_of: Index of the data set in `regions` and of the image in it, -1 without objects, int64 (N, 2).
        pixels: Data sets with label maps.
        pixel_of: Likewise for label maps, int64 (N, 2).
        notes: Notes for the user about the data, one line each.
    """

    name: str
    classes: LevelClasses
    paths: list[Path]
    labels: np.ndarray
    regions: list[DetectionDataset]
    region_of: np.ndarray
    pixels: list[SegmentationDataset]
    pixel_of: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def known(self) -> np.ndarray:
        """Whether each image is labeled on each level, bool (N, 3), in the order of `LEVELS`."""
        return np.stack([self.labels >= 0, self.region_of[:, 0] >= 0, self.pixel_of[:, 0] >= 0], axis=1)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each combination of levels that occurs, such as `image+pixel`."""
        codes, counts = np.unique(self.known @ (4, 2, 1), return_counts=True)
        return {_combination(code): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}

    def having(self, levels: Sequence[Level]) -> MultitaskSplit:
        """Return the images with labels of at least one of some levels."""
        kept = np.flatnonzero(self.known[:, [LEVELS.index(level) for level in levels]].any(1))
        paths = [self.paths[place] for place in kept.tolist()]
        regions, pixels = self.region_of[kept], self.pixel_of[kept]
        return replace(self, paths=paths, labels=self.labels[kept], region_of=regions, pixel_of=pixels)

    def require(self, levels: Sequence[Level]) -> None:
        """Raise FishnetError if no image has labels of a level."""
        for level in levels:
            if not self.known[:, LEVELS.index(level)].any():
                counts = ", ".join(f"{count} {name}" for name, count in self.counts().items())
                raise FishnetError(
                    f"no image of split {self.name!r} has labels of the {level} level ({counts or 'no images'}); "
                    f"add some, such as --data {level}=DIR, or train without that level"
                )

    def objects(self, index: int) -> ObjectLabels | None:
        """Return the objects of an image, with crowds; None if they were not annotated."""
        number, place = self.region_of[index].tolist()
        if number == _NONE:
            return None
        file = self.regions[number].file
        found = file.objects(place)
        # crowds always have an outline, and a folder without outlines may contain some
        masks = [file.mask(int(one)) for one in found] if file.has_outlines else None
        outlined = file.outlines.kind[found] != NONE
        return ObjectLabels(
            file.class_of[found],
            file.boxes[found].copy(),
            file.crowd[found],
            masks,
            None if outlined.all() or masks is None else outlined,
            file.annotated.get(place),
        )

    def is_panoptic(self, index: int) -> bool:
        """Return whether the labels of an image determine its panoptic map: a label map, and the outlines of objects of
        all classes."""
        number, place = self.region_of[index].tolist()
        if number == _NONE or self.pixel_of[index, 0] == _NONE:
            return False
        file = self.regions[number].file
        listed = file.annotated.get(place)
        looked_for_all = listed is None or len(listed) == len(file.classes)
        return looked_for_all and bool(file.outlines.kind[file.objects(place)].all())

    def load(self, index: int) -> tuple[Image.Image, ImageLabels]:
        """Return an image as RGB, in the size that its labels refer to, and its labels.

        Raises:
            BadImageError: The image or its label map cannot be used, or their sizes differ.
        """
        label = int(self.labels[index])
        labels = ImageLabels(None if label < 0 else label, self.objects(index))
        image: Image.Image | None = None
        if labels.objects is not None:
            number, place = self.region_of[index].tolist()
            image = self.regions[number].load(place)
        number, place = self.pixel_of[index].tolist()
        if number != _NONE:
            pixels = self.pixels[number]
            if image is None:
                image, labels.label_map = pixels.load(place)
            else:
                labels.label_map = pixels.label_map(place)
                if labels.label_map.shape != (image.height, image.width):
                    height, width = labels.label_map.shape
                    reason = f"it has {width}x{height} pixels, but the boxes are for {image.width}x{image.height}"
                    raise bad_image(str(pixels.label_path(place)), reason)
        return (read_image(self.paths[index]) if image is None else image), labels


def _combination(code: int) -> str:
    return "+".join(level for place, level in enumerate(LEVELS) if code & (4 >> place)) or "no label"


def open_multitask(
    data: str | Path | Sequence[str | Path],
    split: str,
    *,
    classes: LevelClasses | None = None,
    bad_images: BadImages = "stop",
) -> MultitaskSplit:
    """Open one split of one or several data folders; reads lists, no images.

    Args:
        data: Folders, or LEVEL=DIR, see `parse_sources`.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class names that each level must have, from the training split or a model; a level without names may
            have any. None accepts any.
        bad_images: "stop" raises an error for unusable objects and images; "skip" leaves them out.

    Raises:
        UsageError: A level is unknown.
        FishnetError: A folder or its split is missing or damaged, no image has a label, or the classes of a level
            differ between folders or from `classes`.
    """
    sources = parse_sources(data)
    regions: list[DetectionDataset] = []
    pixels: list[SegmentationDataset] = []
    parts = [part for source in sources for part in _read(source, split, bad_images, regions, pixels)]
    names = _agreed(parts, classes)
    names.ignore_index = pixels[0].ignore_index if pixels else IGNORE
    table: dict[Path, list[int]] = {}
    numbers = dict.fromkeys(LEVELS, _NONE)
    for part in parts:
        numbers[part.level] += 1
        _enter(table, part, numbers[part.level])
    rows = np.array(list(table.values()), np.int64).reshape(-1, 5)
    notes = [note for one in regions for note in one.notes]
    for source in sources:
        if source.level is None and (missing := without_labels(source.root, split, table)):
            many = f"skipped {counted(len(missing), 'image')} without a label of any level, such as {missing[0]}"
            notes.append(f"{source.root}, {split}: {many}")
    return MultitaskSplit(split, names, list(table), rows[:, 0], regions, rows[:, 1:3], pixels, rows[:, 3:5], notes)


def _enter(table: dict[Path, list[int]], part: _Part, number: int) -> None:
    """Enter the labels of a folder into the table of images.

    Args:
        table: For each image its class, then number of the data set and index in it for objects and for label maps.
        part: Labels of one level.
        number: Number of the data set among those of the level.

    Raises:
        FishnetError: An image has labels of the level already, which may be others.
    """
    folders: dict[Path, Path] = {}
    for path, label in zip(part.paths, part.labels, strict=True):
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        row = table.setdefault(folders[path.parent] / path.name, [_NONE] * 5)
        first = {"image": 0, "region": 1, "pixel": 3}[part.level]
        entry = [label] if part.level == "image" else [number, label]
        if row[first] != _NONE:
            raise FishnetError(f"{path} has labels of the {part.level} level twice, the second time in {part.place}")
        row[first : first + len(entry)] = entry


def _read(
    source: Source,
    split: str,
    bad_images: BadImages,
    regions: list[DetectionDataset],
    pixels: list[SegmentationDataset],
) -> Iterator[_Part]:
    """Yield the labels in a folder; opened data sets are added to the lists.

    Raises:
        FishnetError: The folder or its split is missing or damaged, or has no labels of any level.
    """
    check_root(source.root, LAYOUT)
    levels = [source.level] if source.level else levels_of(source.root, split)
    for level in levels:
        if level == "image":
            yield _image_part(source.root, split)
        elif level == "region":
            regions.append(open_detection(source.root, split, bad_images=bad_images))
            file = regions[-1].file
            paths = [regions[-1].path(index) for index in range(len(file))]
            yield _Part("region", str(file.path), file.classes, paths, list(range(len(file))))
        else:
            pixels.append(open_segmentation(source.root, split, bad_images=bad_images))
            paths = [pixels[-1].path(index) for index in range(len(pixels[-1]))]
            yield _Part("pixel", str(source.root), pixels[-1].classes, paths, list(range(len(paths))))


def levels_of(root: Path, split: str) -> list[Level]:
    """Return the levels that a folder in the multitask layout has in a split.

    Raises:
        FishnetError: It has none.
    """
    found: list[Level] = []
    if any((root / "annotations").glob("instances_*.json")):
        document = load_document(annotation_file(root, split))
        images = [image for image in document["images"] if isinstance(image, dict)]
        if "labels" in document and any(image.get("label") is not None for image in images):
            found.append("image")
        if document["categories"] and any(image.get(ANNOTATED) != [] for image in images):
            found.append("region")
    if layout_of(root) == "folders" and has_files(root / split_folder(root, split) / "labels"):
        found.append("pixel")
    if found:
        return found
    raise FishnetError(
        f"{root} has no labels of any level in split {split!r}; expected {LAYOUT}. For a folder of a single task, name "
        f"the level, such as image={root}"
    )


def without_labels(root: Path, split: str, labeled: Container[Path]) -> list[Path]:
    """Return the images of a multitask folder that have no label of any level: those listed, and those in the folder.

    Args:
        root: Data folder.
        split: Name of the split.
        labeled: Resolved paths of the images with labels.
    """
    found: dict[Path, None] = {}
    if any((root / "annotations").glob("instances_*.json")):
        path = annotation_file(root, split)
        entries = load_document(path)["images"]
        names = [str(image.get("file_name")) for image in entries if isinstance(image, dict)]
        folder = image_folder(root, path.stem.removeprefix("instances_"), names)
        found |= dict.fromkeys(folder / name for name in names)
    images = root / split_folder(root, split) / "images"
    if images.is_dir():
        found |= dict.fromkeys(image_files(images))
    return [path for path in found if path.parent.resolve() / path.name not in labeled]


def split_folder(root: Path, split: str) -> str:
    """Return the name of the folder with the label maps of a split; the split itself if it has none."""
    try:
        return resolve_pixel_split(root, split)
    except FishnetError:
        return split


def has_files(folder: Path) -> bool:
    """Return whether a folder exists and contains a visible file."""
    return folder.is_dir() and next(all_files(folder), None) is not None


def _image_part(root: Path, split: str) -> _Part:
    """Return the classes of the images of a folder; raises FishnetError if they are not one class for each file."""
    listing = list_split(root, resolve_split(root, split))
    if listing.multi_label or listing.shards is not None:
        kind = "several labels per image" if listing.multi_label else "shards"
        raise FishnetError(f"{listing.place} has {kind}; the image level takes one class per image file")
    targets = [target for target in listing.targets if isinstance(target, int)]
    return _Part("image", str(listing.place), listing.classes, [root / name for name in listing.names], targets)


def _agreed(parts: list[_Part], wanted: LevelClasses | None) -> LevelClasses:
    """Return the classes of each level.

    Raises:
        FishnetError: They differ between folders, or from those that are wanted.
    """
    names = {level: wanted.of(level) if wanted is not None else [] for level in LEVELS}
    first: dict[Level, str] = dict.fromkeys(LEVELS, "the training split or model")
    for part in parts:
        if not names[part.level]:
            names[part.level], first[part.level] = part.classes, part.place
        known = names[part.level]
        if part.classes != known:
            here, there = sorted(set(part.classes) - set(known)), sorted(set(known) - set(part.classes))
            differences = [f"only in {first[part.level]}: {_short(there)}"] if there else []
            differences += [f"only in {part.place}: {_short(here)}"] if here else []
            raise FishnetError(
                f"the classes of the {part.level} level differ between {first[part.level]} and {part.place}: "
                f"{'; '.join(differences) or 'the names are equal, but in another order'}; make both class lists equal"
            )
    return LevelClasses(names["image"], names["region"], names["pixel"])


def _short(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
