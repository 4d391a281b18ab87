"""Create a stratified val split of a COCO folder.

No image of a COCO folder is moved: its annotation file becomes two, and the file names in the new val file point to the
images of train. The original file is kept as `annotations/unsplit_<split>.json`, from which every attempt starts, so an
interrupted split loses no data.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fishnet.data.detection.coco import load_document, parse_coco, summarize
from fishnet.data.detection.dataset import annotation_file, image_folder, missing_files
from fishnet.data.detection.types import Document, ImageEntry
from fishnet.data.levels import has_boxes_and_maps, refuse_partial_split
from fishnet.data.stratify import Label, stratify
from fishnet.errors import FishnetError, UsageError, counted
from fishnet.files import atomic_write

KEPT = "unsplit_"


@dataclass
class CocoSplitReport:
    """Result of `split_coco`; counts are numbers of images, per class of the images that contain it."""

    root: Path
    kept: Path
    counts: dict[str, tuple[int, int]]
    images: tuple[int, int]

    def describe(self) -> str:
        """Return a table of the number of images of each class in train and val."""
        width = max(len(name) for name in [*self.counts, "all images"])
        rows = [*self.counts.items(), ("all images", self.images)]
        lines = [f"{'class':<{width}}  {'train':>8}  {'val':>8}"]
        lines += [f"{name:<{width}}  {train:>8}  {val:>8}" for name, (train, val) in rows]
        if few := [name for name, (_, val) in self.counts.items() if not val]:
            lines.append(f"classes without val images: {', '.join(few)}")
        lines.append(f"{self.root}: train and val are ready, no image was moved; {self.kept} is the original file")
        return "\n".join(lines)


def can_split(root: Path) -> bool:
    """Whether a folder has annotation files of COCO, and no label maps, which another task divides with them."""
    return any((root / "annotations").glob("instances_*.json")) and not has_boxes_and_maps(root)


def split_coco(root: Path | str, val: float = 0.2, seed: int = 0) -> CocoSplitReport:
    """Create a val split of a COCO folder from its train split, with about the same fraction of images of each class.

    No image is moved; files with equal content stay in the same split.

    Args:
        root: Data folder.
        val: Fraction of the images that goes to val, between 0 and 1.
        seed: Seed of the random choice.

    Raises:
        FishnetError: A val split exists already, there is no train split, or the annotations have faults; nothing is
            changed.
        UsageError: `val` is not between 0 and 1, or the folder has label maps too.
    """
    root = Path(root)
    refuse_partial_split(root, "detection")
    if not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    folder = root / "annotations"
    if present := sorted(path.name for path in folder.glob("instances_val*.json")):
        raise FishnetError(
            f"{root} already has a validation split ({present[0]}); remove or rename it to create another"
        )
    path = annotation_file(root, "train")
    split = path.stem.removeprefix("instances_")
    kept = folder / f"{KEPT}{split}.json"
    document = _original(path, kept)
    file = parse_coco(document, path)
    images = image_folder(root, split, file.file_names)
    if problems := file.problems + missing_files(file, images):
        raise FishnetError(
            f"{path} has {counted(len(problems), 'problems')}: {summarize(problems)}. "
            f"`fishnet data check detection {root} --fix OUT.json` repairs what can be repaired"
        )
    if len(file) < 2:
        raise FishnetError(f"{path} lists {len(file)} images; a split needs at least two")
    labels = [frozenset(file.class_of[file.objects(index)].tolist()) for index in range(len(file))]
    chosen = choose_images(labels, [images / name for name in file.file_names], val, seed)
    counts = {
        name: (sum(number in one for one in labels), sum(number in labels[index] for index in chosen))
        for number, name in enumerate(file.classes)
    }
    train, other = _divided(document, {int(file.image_ids[index]) for index in chosen}, images.relative_to(root))
    if not kept.exists():
        atomic_write(kept, path.read_bytes())
    # val is written last: an earlier interruption leaves a folder without val, and the next call starts from `kept`
    atomic_write(path, json.dumps(train))
    atomic_write(folder / f"instances_{split.replace('train', 'val', 1)}.json", json.dumps(other))
    shares = {name: (every - some, some) for name, (every, some) in counts.items()}
    return CocoSplitReport(root, kept, shares, (len(file) - len(chosen), len(chosen)))


def _original(path: Path, kept: Path) -> Document:
    """Return the document to split: the original kept by an interrupted attempt, otherwise the current file."""
    document = load_document(path)
    if not kept.exists():
        return document
    original = load_document(kept)
    known = {str(image) for image in original["images"]}
    if any(str(image) not in known for image in document["images"]):
        raise FishnetError(f"{kept} is from an earlier split, but {path} has other images now; move {kept.name} away")
    return original


def choose_images(labels: Sequence[frozenset[Label]], paths: Sequence[Path], val: float, seed: int) -> set[int]:
    """Return the indices of the images for val; images with equal content are assigned together.

    Args:
        labels: Classes of each image, of which val gets about the same fraction.
        paths: Files of the images.
        val: Fraction of the images that goes to val.
        seed: Seed of the random choice.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        try:
            with path.open("rb") as stream:
                groups[hashlib.file_digest(stream, "blake2b").digest()].append(index)
        except OSError as error:
            raise FishnetError(f"cannot read the image {path} ({error.strerror or error})") from error
    members = list(groups.values())
    together = [frozenset(label for index in group for label in labels[index]) for group in members]
    return {index for group in stratify(together, val, seed) for index in members[group]}


def _divided(document: Document, chosen: set[int], folder: Path) -> tuple[Document, Document]:
    """Return the documents of train and val; the file names of val are relative to the data folder."""
    sides: list[Document] = []
    for inside in (False, True):
        images: list[ImageEntry] = [image for image in document["images"] if (image["id"] in chosen) == inside]
        if inside:
            images = [{**image, "file_name": (folder / image["file_name"]).as_posix()} for image in images]
        objects = [entry for entry in document["annotations"] if (entry["image_id"] in chosen) == inside]
        sides.append({**document, "images": images, "annotations": objects})
    return sides[0], sides[1]
