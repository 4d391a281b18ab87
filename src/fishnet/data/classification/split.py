"""Create a stratified validation split of a classification data set by renaming files, safe against interruption.

`fishnet.data.moves` carries the split out.
"""

from __future__ import annotations

import csv
import io
import random
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from fishnet.data.checks import quiet_pillow
from fishnet.data.classification.checks import inspect_listings
from fishnet.data.classification.layouts import Listing, available_splits, explain_classes, is_split, list_split
from fishnet.data.folders import all_files, has_label_maps, image_files, is_image, subfolders
from fishnet.data.levels import refuse_partial_split
from fishnet.data.moves import PLAN, SplitPlan, SplitReport, UndoReport, carry_out, read_plan, undo_split, write_plan
from fishnet.errors import FishnetError, UsageError, quoted


def can_split(root: Path) -> bool:
    """Whether a folder has class folders, or a list of labels, that can be divided."""
    if not root.is_dir() or any((root / "annotations").glob("instances_*.json")) or has_label_maps(root):
        return False
    if (root / PLAN).exists() or available_splits(root):
        return True
    contents = [folder for folder in subfolders(root) if next(all_files(folder), None) is not None]
    filled = [folder for folder in contents if next(image_files(folder), None) is not None]
    if len(filled) > 1:
        return True
    # a single folder of images beside other files may be of any task; alone it is one class, which the split explains
    return filled == contents and (bool(filled) or any(is_image(path) for path in root.iterdir()))


def split_classification(
    root: Path | str,
    val: float = 0.2,
    seed: int = 0,
    copy: bool = False,
    undo: bool = False,
    progress: bool = True,
) -> SplitReport | UndoReport:
    """Create a val split with a fraction of each class, or complete an interrupted split.

    Images of `root/train/<class>/` are moved to `root/val/<class>/`; `root/<class>/` is divided into train and val;
    `root/train` with a `labels.csv` is stratified by the first label. Each class with at least two different images has
    at least one in val and one in train. Images with equal pixels stay in the same split.

    Args:
        root: Data folder.
        val: Fraction of each class that goes to val, between 0 and 1.
        seed: Seed of the random choice.
        copy: Copy the files instead of moving them (only from `root/<class>/`).
        undo: Move the files of the last split back to where they were.
        progress: Show a progress bar on a terminal.

    Raises:
        FishnetError: A val split exists already, the layout cannot be split, or a target file exists; no file is lost.
        UsageError: `val` is not between 0 and 1, or `copy` would leave val images in train.
    """
    root = Path(root)
    if undo:
        return undo_split(root)
    if not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    splits = available_splits(root)
    plan = read_plan(root)
    resumed = plan is not None
    if plan is None:
        if not splits and is_split(root):
            raise FishnetError(
                f"{root} is one split of a data set; did you mean `fishnet data split {quoted(root.parent)}`?"
            )
        plan = _make_plan(root, splits, val, seed, copy, progress)
        write_plan(root, plan)
    return carry_out(root, plan, resumed)


def choose_val(classes: list[str], digests: list[bytes], val: float, seed: int) -> set[int]:
    """Return the indices of the images for val: about a fraction `val` of each class, at least one and never all.

    Args:
        classes: Class of each image.
        digests: Hash of the content of each image; images with equal hashes stay in the same split.
        val: Fraction of each class.
        seed: Seed of the random choice.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        groups[digest].append(number)
    of_class: dict[str, list[bytes]] = defaultdict(list)
    for digest, numbers in groups.items():
        for name in sorted({classes[number] for number in numbers}):
            of_class[name].append(digest)
    total, chosen, taken = Counter(classes), Counter[str](), set[bytes]()

    def take(digest: bytes) -> None:
        """Add a group to val unless one of its classes would have no images left in train."""
        parts = Counter(classes[number] for number in groups[digest])
        if digest not in taken and all(chosen[name] + size < total[name] for name, size in parts.items()):
            taken.add(digest)
            chosen.update(parts)

    for name in sorted(of_class):
        order = of_class[name]
        random.Random(f"{seed}/{name}").shuffle(order)
        wanted = max(1, int(total[name] * val + 0.5))
        for digest in order:
            if chosen[name] + len(groups[digest]) <= wanted:
                take(digest)
        for digest in sorted(order, key=lambda digest: len(groups[digest])):
            if not chosen[name]:
                take(digest)
    return {number for digest in taken for number in groups[digest]}


def _make_plan(root: Path, splits: list[str], val: float, seed: int, copy: bool, progress: bool) -> SplitPlan:
    if present := [name for name in splits if name.startswith("val")] or ["val"] * (root / "val").exists():
        raise FishnetError(
            f"{root} already has a validation split ({present[0]}); remove or rename it to create another"
        )
    if splits and "train" not in splits:
        raise FishnetError(f"{root} has the splits {', '.join(splits)} but no train split to take images from")
    if splits and copy:
        raise UsageError(
            "--copy would leave the val images in train; it is only for DIR/<class>/ without a train split"
        )
    refuse_partial_split(root, "classification")
    if not splits and (text := explain_classes(root)):
        raise FishnetError(text)
    listing = list_split(root, "train" if splits else "")
    if listing.kind not in ("folders", "list"):
        raise FishnetError(
            f"{listing.place}: cannot split shards; supported are class folders, labels.csv and COCO files"
        )
    if not listing.names:
        raise FishnetError(f"{listing.place} contains no images to split")
    _check_movable(root, listing, unsplit=not splits, copy=copy)
    names = [listing.classes[labels[0]] if labels else "(no label)" for labels in listing.labels]
    with quiet_pillow():
        digests = [facts.digest for facts in inspect_listings(root, [listing], progress=progress)]
    chosen = choose_val(names, digests, val, seed)
    plan = SplitPlan(val, seed, copy, _count(names, chosen), [])
    for number, name in enumerate(listing.names):
        side = "val" if number in chosen else "train"
        target = f"{side}/{name if not splits else PurePosixPath(name).relative_to('train')}"
        if target != name:
            plan.moves.append((name, target))
    if listing.multi_label:
        plan.before = {listing.place.relative_to(root).as_posix(): listing.place.read_bytes().decode("utf-8")}
        plan.lists = _divide_list(listing.place, {PurePosixPath(new).relative_to("val") for _, new in plan.moves})
    return plan


def _count(names: list[str], chosen: set[int]) -> dict[str, tuple[int, int]]:
    total, val = Counter(names), Counter(names[number] for number in chosen)
    return {name: (total[name] - val[name], val[name]) for name in sorted(total)}


def _check_movable(root: Path, listing: Listing, unsplit: bool, copy: bool) -> None:
    """Raise FishnetError if images are missing, outside the folder, or reached through symbolic links."""
    folder = root if unsplit else root / "train"
    for name in listing.names:
        path = root / name
        if not path.is_relative_to(folder) or ".." in path.parts[len(folder.parts) :]:
            raise FishnetError(f"{listing.place} lists {name}, which is not below {folder}; move the images there")
        if not path.exists():
            raise FishnetError(
                f"{listing.place} lists {name}, which does not exist; `fishnet data check` lists all missing files"
            )
        if copy:
            continue
        linked = any(parent.is_symlink() for parent in path.parents if parent != folder and folder in parent.parents)
        if linked or (unsplit and path.is_symlink()):
            advice = "use --copy" if unsplit else "replace the link by the files"
            raise FishnetError(
                f"{path} is reached through a symbolic link, which moving the file would break; {advice}"
            )


def _divide_list(path: Path, in_val: set[PurePosixPath]) -> dict[str, str]:
    """Return the content of the two new `labels.csv`, with all columns."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header, *rows = list(csv.reader(stream))
    column = header.index("file")
    texts = {side: io.StringIO() for side in ("val", "train")}
    writers = {side: csv.writer(text, lineterminator="\n") for side, text in texts.items()}
    for writer in writers.values():
        writer.writerow(header)
    for row in filter(None, rows):
        writers["val" if PurePosixPath(row[column]) in in_val else "train"].writerow(row)
    return {f"{side}/labels.csv": text.getvalue() for side, text in texts.items()}
