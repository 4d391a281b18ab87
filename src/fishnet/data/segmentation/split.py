"""Create a stratified val split of a segmentation data set by renaming files; `fishnet.data.moves` carries it out."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from fishnet.data.checks import inspect_images, quiet_pillow
from fishnet.data.levels import refuse_partial_split
from fishnet.data.moves import SplitPlan, SplitReport, UndoReport, carry_out, read_plan, undo_split, write_plan
from fishnet.data.segmentation.dataset import SegmentationDataset, no_pairs
from fishnet.data.segmentation.layouts import Listing, available_splits, layout_of, list_split
from fishnet.data.stratify import stratify
from fishnet.errors import FishnetError, UsageError, quoted


def can_split(root: Path) -> bool:
    """Whether a folder has images and label maps that can be divided, and no boxes, which another task divides."""
    return layout_of(root) == "folders" and not any((root / "annotations").glob("instances_*.json"))


def split_segmentation(
    root: Path | str,
    val: float = 0.2,
    seed: int = 0,
    copy: bool = False,
    undo: bool = False,
    progress: bool = True,
) -> SplitReport | UndoReport:
    """Create a val split with about the same fraction of the images of each class, or complete an interrupted split.

    Images and label maps of `root/train` are moved to `root/val`; `root/images` and `root/labels` are divided into
    train and val. Images with equal pixels stay in the same split. Images without a label map stay in train.

    Args:
        root: Data folder.
        val: Fraction of the images that goes to val, between 0 and 1.
        seed: Seed of the random choice.
        copy: Copy the files instead of moving them (only from `root/images` and `root/labels`).
        undo: Move the files of the last split back to where they were.
        progress: Show a progress bar on a terminal.

    Raises:
        FishnetError: A val split exists already, the layout cannot be split, a label map cannot be used, or a target
            file exists; no file is lost.
        UsageError: `val` is not between 0 and 1, `copy` would leave val images in train, or the folder has boxes too.
    """
    root = Path(root)
    refuse_partial_split(root, "segmentation")
    if undo:
        return undo_split(root)
    if not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    plan = read_plan(root)
    resumed = plan is not None
    if plan is None:
        plan = _make_plan(root, val, seed, copy, progress)
        write_plan(root, plan)
    return carry_out(root, plan, resumed)


def _make_plan(root: Path, val: float, seed: int, copy: bool, progress: bool) -> SplitPlan:
    splits = available_splits(root)
    if layout_of(root) != "folders":
        raise FishnetError(
            f"{root} already defines its own splits; `fishnet data convert {quoted(root)} NEW --task "
            "segmentation --val 0.2` divides a copy"
        )
    if present := [name for name in splits if name.startswith("val")] or ["val"] * (root / "val").exists():
        raise FishnetError(
            f"{root} already has a validation split ({present[0]}); remove or rename it to create another"
        )
    if splits != [""] and "train" not in splits:
        raise FishnetError(f"{root} has the splits {', '.join(splits)} but no train split to take images from")
    if splits != [""] and copy:
        raise UsageError("--copy would leave the val images in train; it is only for DIR/images without a train split")
    listing = list_split(root, "train" if splits != [""] else "")
    if not listing.pairs:
        raise FishnetError(no_pairs(listing))
    if len(listing.pairs) < 2:
        raise FishnetError(f"{root} has one image with a label map; a split needs at least two")
    _refuse_links(listing, copy)
    present_in = occurring_classes(listing, progress)
    chosen = choose_val(listing, present_in, val, seed, progress)
    plan = SplitPlan(val, seed, copy, _counts(listing, present_in, chosen), [], unit="files")
    plan.images = (len(listing.pairs) - len(chosen), len(chosen))
    for number, pair in enumerate(listing.pairs):
        side = "val" if number in chosen else "train"
        plan.moves += _move(pair.image, side, listing) + _move(pair.label, side, listing)
    for name in (*listing.unlabeled, *listing.doubled):
        plan.moves += _move(name, "train", listing)
    return plan


def _move(name: str, side: str, listing: Listing) -> list[tuple[str, str]]:
    """Return the old and new path of a file that goes to a side; empty if it stays."""
    target = f"{side}/{PurePosixPath(name).relative_to(listing.split)}"
    return [(name, target)] if target != name else []


def _refuse_links(listing: Listing, copy: bool) -> None:
    """Raise FishnetError if a folder of the data set is a symbolic link, from which files would be moved away."""
    folder = listing.root / listing.split
    for place in (folder, folder / "images", folder / "labels"):
        if place.is_symlink() and not copy and place != listing.root:
            raise FishnetError(f"{place} is a symbolic link to files elsewhere; replace it by the files")


def occurring_classes(listing: Listing, progress: bool = True, workers: int = 2) -> list[frozenset[int]]:
    """Return the classes that occur in each label map of a listing.

    Raises:
        BadImageError: A label map cannot be used.
    """
    dataset = SegmentationDataset(listing)

    def one(index: int) -> frozenset[int]:
        return frozenset(np.unique(dataset.label_map(index)).tolist()) - {dataset.ignore_index}

    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(one, range(len(dataset)))
        bar = tqdm(found, "label maps", len(dataset), False, disable=None if progress else True, unit="image")
        return list(bar)


def choose_val(
    listing: Listing, present: list[frozenset[int]], val: float, seed: int, progress: bool = True
) -> set[int]:
    """Return the indices of the pairs for val; images with equal pixels are assigned together.

    Args:
        listing: Images and label maps.
        present: Classes that occur in each label map.
        val: Fraction of the images.
        seed: Seed of the random choice.
        progress: Show a progress bar on a terminal.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    jobs = ((listing.root.joinpath(pair.image).read_bytes, pair.image) for pair in listing.pairs)
    with quiet_pillow():
        for index, facts in enumerate(inspect_images(jobs, len(listing.pairs), progress=progress)):
            groups[facts.digest].append(index)
    members = list(groups.values())
    together = [frozenset[int]().union(*(present[index] for index in group)) for group in members]
    return {index for group in stratify(together, val, seed) for index in members[group]}


def _counts(listing: Listing, present: list[frozenset[int]], chosen: set[int]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for index, name in enumerate(listing.coding.classes):
        members = [number for number, one in enumerate(present) if index in one]
        in_val = sum(number in chosen for number in members)
        found[name] = (len(members) - in_val, in_val)
    return found
