"""A stratified val split of boxes: of a COCO folder that has a train split only, or of pictures on their way to one.

Nothing is moved in a COCO folder: its annotation file becomes two, and the file names of the new val lead to where the
images lie. The original file is kept as `annotations/unsplit_<split>.json`, from which every attempt starts, so that an
interrupted one loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishnet.data.detection.coco import load_document, parse_coco, summarise
from fishnet.data.detection.dataset import annotation_file, image_folder, missing_files
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_write

KEPT = "unsplit_"


@dataclass
class CocoSplitReport:
    """What `split_coco` did; counts are of images, per class of those that show it."""

    root: Path
    kept: Path
    counts: dict[str, tuple[int, int]]
    images: tuple[int, int]

    def describe(self) -> str:
        """Return the number of images of each class in train and val as a table."""
        width = max(len(name) for name in [*self.counts, "all images"])
        rows = [*self.counts.items(), ("all images", self.images)]
        lines = [f"{'class':<{width}}  {'train':>8}  {'val':>8}"]
        lines += [f"{name:<{width}}  {train:>8}  {val:>8}" for name, (train, val) in rows]
        if few := [name for name, (_, val) in self.counts.items() if not val]:
            lines.append(f"without a val image: {', '.join(few)}")
        lines.append(f"{self.root}: train and val are ready, no image was moved; {self.kept} is the file as it was")
        return "\n".join(lines)


def stratify(labels: Sequence[frozenset[Any]], val: float, seed: int) -> set[int]:
    """Return which images go to val, so that it has about the same share of the images of every class.

    Iterative stratification (Sechidis et al., ECML 2011), the rarest class first: its images are dealt to the side that
    lacks most of them; images without a class come last. Where a class has two images or more, val is meant to get one
    and train to keep one.

    Args:
        labels: Classes of each image.
        val: Share of the images, between 0 and 1.
        seed: Seed of the order in which images are dealt.
    """
    rng = random.Random(seed)
    total = Counter(label for one in labels for label in one)
    lacking: dict[Any, list[float]] = {}
    for label, count in total.items():
        wanted = min(max(count * val, 1.0), count - 1.0) if count > 1 else 0.0
        lacking[label] = [count - wanted, wanted]
    everywhere = [len(labels) * (1 - val), len(labels) * val]
    members: dict[Any, list[int]] = defaultdict(list)
    for index, one in enumerate(labels):
        for label in one:
            members[label].append(index)
    left, dealt = dict(total), set[int]()
    chosen: set[int] = set()

    def deal(index: int, need: Sequence[float]) -> None:
        both = (need[1], everywhere[1], rng.random()) > (need[0], everywhere[0], rng.random())
        side = int(both)
        dealt.add(index)
        if side:
            chosen.add(index)
        everywhere[side] -= 1
        for label in labels[index]:
            lacking[label][side] -= 1
            left[label] -= 1

    while left := {label: count for label, count in left.items() if count}:
        rarest = min(left, key=lambda label: (left[label], str(label)))
        waiting = [index for index in members[rarest] if index not in dealt]
        rng.shuffle(waiting)
        for index in waiting:
            deal(index, lacking[rarest])
    rest = [index for index in range(len(labels)) if index not in dealt]
    rng.shuffle(rest)
    for index in rest:
        deal(index, everywhere)
    return chosen


def can_split(root: Path) -> bool:
    """Whether a folder has annotation files of COCO."""
    return any((root / "annotations").glob("instances_*.json"))


def split_coco(root: Path | str, val: float = 0.2, seed: int = 0) -> CocoSplitReport:
    """Give a COCO folder that has a train split a val with about a share of the images of every class.

    Images stay whole and where they are; files of equal content stay on one side.

    Args:
        root: Data folder.
        val: Share of the images that goes to val.
        seed: Seed of the choice.

    Raises:
        FishnetError: There is a val already or no train, or the annotations have faults; nothing is changed.
        UsageError: `val` is no share between 0 and 1.
    """
    root = Path(root)
    if not 0 < val < 1:
        raise UsageError(f"--val {val} is not a share between 0 and 1, such as 0.2")
    folder = root / "annotations"
    if present := sorted(path.name for path in folder.glob("instances_val*.json")):
        raise FishnetError(f"{root} has a validation split already ({present[0]}); remove or rename it to make another")
    path = annotation_file(root, "train")
    split = path.stem.removeprefix("instances_")
    kept = folder / f"{KEPT}{split}.json"
    document = _original(path, kept)
    file = parse_coco(document, path)
    images = image_folder(root, split, file.file_names)
    if problems := file.problems + missing_files(file, images):
        raise FishnetError(
            f"{path} has {len(problems)} problems: {summarise(problems)}. "
            f"`fishnet data check detection {root} --fix OUT.json` mends what can be mended"
        )
    if len(file) < 2:
        raise FishnetError(f"{path} lists {len(file)} images; a split needs two or more")
    labels = [frozenset(file.class_of[file.objects(index)].tolist()) for index in range(len(file))]
    chosen = _choose(labels, [images / name for name in file.file_names], val, seed)
    counts = {
        name: (sum(number in one for one in labels), sum(number in labels[index] for index in chosen))
        for number, name in enumerate(file.classes)
    }
    train, other = _divided(document, {int(file.image_ids[index]) for index in chosen}, images.relative_to(root))
    if not kept.exists():
        atomic_write(kept, path.read_bytes())
    # val comes last: whatever is interrupted before leaves a folder without val, which starts again from `kept`
    atomic_write(path, json.dumps(train))
    atomic_write(folder / f"instances_{split.replace('train', 'val', 1)}.json", json.dumps(other))
    shares = {name: (every - some, some) for name, (every, some) in counts.items()}
    return CocoSplitReport(root, kept, shares, (len(file) - len(chosen), len(chosen)))


def _original(path: Path, kept: Path) -> dict[str, Any]:
    """Return the document to split: what an interrupted attempt has kept, else the file as it is."""
    document = load_document(path)
    if not kept.exists():
        return document
    original = load_document(kept)
    known = {str(image) for image in original["images"]}
    if any(str(image) not in known for image in document["images"]):
        raise FishnetError(f"{kept} is of an earlier split, and {path} has other images now; move the first away")
    return original


def _choose(labels: list[frozenset[int]], paths: list[Path], val: float, seed: int) -> set[int]:
    """Return which images go to val; those of equal content are dealt as one."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        try:
            with path.open("rb") as stream:
                groups[hashlib.file_digest(stream, "blake2b").digest()].append(index)
        except OSError as error:
            raise FishnetError(f"cannot read the image {path} ({error.strerror or error})") from error
    members = list(groups.values())
    together = [frozenset().union(*(labels[index] for index in group)) for group in members]
    return {index for group in stratify(together, val, seed) for index in members[group]}


def _divided(document: dict[str, Any], chosen: set[int], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the documents of train and val; file names of val are relative to the data folder."""
    sides: list[dict[str, Any]] = []
    for inside in (False, True):
        images = [image for image in document["images"] if (image["id"] in chosen) == inside]
        if inside:
            images = [{**image, "file_name": (folder / image["file_name"]).as_posix()} for image in images]
        objects = [entry for entry in document["annotations"] if (entry["image_id"] in chosen) == inside]
        sides.append({**document, "images": images, "annotations": objects})
    return sides[0], sides[1]
