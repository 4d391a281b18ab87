"""Create a stratified val split of a multitask folder: images and label maps are moved, the COCO file is divided.

The plan of `fishnet.data.moves` also contains the annotation files of both splits, so an interrupted split is completed
by the next call, and undoing it restores the original file.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from fishnet.data.detection.coco import load_document
from fishnet.data.detection.dataset import annotation_file
from fishnet.data.detection.split import choose_images
from fishnet.data.detection.types import Document
from fishnet.data.folders import image_folder
from fishnet.data.levels import LEVELS, has_boxes_and_maps
from fishnet.data.moves import SplitPlan, SplitReport, UndoReport, carry_out, read_plan, undo_split, write_plan
from fishnet.data.multitask.layout import MultitaskSplit, open_multitask
from fishnet.errors import FishnetError, UsageError

TRAIN, VAL = "train", "val"


def can_split(root: Path) -> bool:
    """Whether a folder has annotation files of COCO and label maps, which have to be divided together."""
    return has_boxes_and_maps(root)


def split_multitask(root: Path | str, val: float = 0.2, seed: int = 0, undo: bool = False) -> SplitReport | UndoReport:
    """Create a val split of a multitask folder, or complete an interrupted split.

    Val gets about the same fraction of the images of each class of each level, and of the images with labels of each
    level. Files with equal content stay in the same split; images without any label stay in train.

    Args:
        root: Data folder.
        val: Fraction of the images that goes to val, between 0 and 1.
        seed: Seed of the random choice.
        undo: Move the files of the last split back to where they were.

    Raises:
        FishnetError: A val split exists already, the layout cannot be split, labels cannot be used, or a target file
            exists; no file is lost.
        UsageError: `val` is not between 0 and 1.
    """
    root = Path(root)
    if undo:
        return undo_split(root)
    if not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    plan = read_plan(root)
    resumed = plan is not None
    if plan is None:
        plan = _make_plan(root, val, seed)
        write_plan(root, plan)
    return carry_out(root, plan, resumed)


def _make_plan(root: Path, val: float, seed: int) -> SplitPlan:
    path = annotation_file(root, TRAIN)
    present = [*root.glob("val*"), *path.parent.glob("instances_val*.json")]
    if present:
        raise FishnetError(
            f"{root} already has a validation split ({present[0].name}); remove or rename it to create another"
        )
    split = open_multitask(root.resolve(), TRAIN)
    base = root.resolve() / TRAIN
    if outside := [one for one in split.paths if not one.is_relative_to(base)]:
        raise FishnetError(
            f"{outside[0]} is not in {root / TRAIN}; a split of several levels moves the images of that folder to "
            f"{root / VAL}"
        )
    if len(split) < 2:
        raise FishnetError(f"{root}, {TRAIN} has {len(split)} images with labels; a split needs at least two")
    labels = [_labels(split, index) for index in range(len(split))]
    chosen = sorted(choose_images(labels, split.paths, val, seed))
    names = [f"{level}: {name}" for level in LEVELS for name in split.classes.of(level)]
    counts = {}
    for name in names:
        inside = sum(name in labels[index] for index in chosen)
        counts[name] = (sum(name in one for one in labels) - inside, inside)
    document = load_document(path)
    old = path.relative_to(root).as_posix()
    new = path.with_name(path.name.replace(TRAIN, VAL, 1)).relative_to(root).as_posix()
    here, there = _divided(document, image_folder(base.parent, TRAIN, _names(document)), base, split, set(chosen))
    return SplitPlan(
        val,
        seed,
        copy=False,
        counts=counts,
        moves=[move for index in chosen for move in _moves(split, index, base)],
        lists={old: json.dumps(here), new: json.dumps(there)},
        before={old: path.read_text("utf-8")},
        unit="images and label maps",
        images=(len(split) - len(chosen), len(chosen)),
    )


def _labels(split: MultitaskSplit, index: int) -> frozenset[str]:
    """Return the classes that occur in an image, and the levels on which it is labeled."""
    known = {level for level, is_known in zip(LEVELS, split.known[index].tolist(), strict=True) if is_known}
    found: set[str] = set(known)
    if split.labels[index] >= 0:
        found.add(f"image: {split.classes.image[split.labels[index]]}")
    objects = split.objects(index)
    if objects is not None:
        found |= {f"region: {split.classes.region[label]}" for label in objects.classes.tolist()}
    number, place = split.pixel_of[index].tolist()
    if number >= 0:
        values = set(split.pixels[number].label_map(place).ravel().tolist())
        found |= {f"pixel: {name}" for label, name in enumerate(split.classes.pixel) if label in values}
    return frozenset(found)


def _moves(split: MultitaskSplit, index: int, base: Path) -> list[tuple[str, str]]:
    """Return old and new path of an image and its label map, relative to the data folder."""
    files = [split.paths[index]]
    number, place = split.pixel_of[index].tolist()
    if number >= 0:
        files.append(split.pixels[number].label_path(place))
    relative = [file.relative_to(base).as_posix() for file in files]
    return [(f"{TRAIN}/{name}", f"{VAL}/{name}") for name in relative]


def _names(document: Document) -> list[str]:
    return [str(image["file_name"]) for image in document["images"]]


def _divided(
    document: Document, folder: Path, base: Path, split: MultitaskSplit, chosen: set[int]
) -> tuple[Document, Document]:
    """Return the documents of train and val.

    File names relative to the folder of the split stay the same; those relative to the data folder follow the images.

    Args:
        document: Document of train before the split.
        folder: Folder that its file names are relative to.
        base: Folder of the train split.
        split: Images and labels of train.
        chosen: Indices of the images that become val.
    """
    moved = {split.paths[index] for index in chosen}
    ids = {image["id"] for image in document["images"] if folder.resolve() / image["file_name"] in moved}
    sides: list[Document] = []
    for inside in (False, True):
        images = [image for image in document["images"] if (image["id"] in ids) == inside]
        objects = [entry for entry in document["annotations"] if (entry["image_id"] in ids) == inside]
        if inside and folder == base.parent:
            names = [PurePosixPath(VAL, *PurePosixPath(image["file_name"]).parts[1:]).as_posix() for image in images]
            images = [{**image, "file_name": name} for image, name in zip(images, names, strict=True)]
        sides.append({**document, "images": images, "annotations": objects})
    return sides[0], sides[1]
