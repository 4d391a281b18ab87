"""Create a stratified validation split of a classification data set by renaming files, safe against interruption.

The plan is first written to `split.json` in the data folder. Each file is then either still at its old path or already
at its new one, so running the command again completes an interrupted split.
"""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from fishnet.data.checks import quiet_pillow
from fishnet.data.classification.checks import inspect_listings
from fishnet.data.classification.layouts import Listing, available_splits, is_split, list_split
from fishnet.data.folders import image_files
from fishnet.environment import announce
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_path, atomic_write

PLAN = "split.json"


@dataclass
class SplitPlan:
    """Plan of a split; paths are relative to the data folder."""

    val: float
    seed: int
    copy: bool
    counts: dict[str, tuple[int, int]]
    """Number of images of each class in train and in val."""
    moves: list[tuple[str, str]]
    """Old and new path of each file that is moved."""
    lists: dict[str, str] = field(default_factory=dict)
    """Content of each `labels.csv` to be written after the moves."""
    before: dict[str, str] = field(default_factory=dict)
    """Content of each `labels.csv` before the split."""
    done: bool = False
    format_version: int = 1


@dataclass
class SplitReport:
    """Result of `split_classification`."""

    root: Path
    plan: SplitPlan
    resumed: bool

    def describe(self) -> str:
        """Return a table of the number of images of each class in train and val."""
        plan = self.plan
        lines = []
        if self.resumed:
            lines.append(f"completed an interrupted split with --val {plan.val} --seed {plan.seed}")
        width = max(len(name) for name in [*plan.counts, "class"])
        lines.append(f"{'class':<{width}}  {'train':>8}  {'val':>8}")
        lines += [f"{name:<{width}}  {train:>8}  {val:>8}" for name, (train, val) in plan.counts.items()]
        train, val = (sum(column) for column in zip(*plan.counts.values(), strict=True))
        lines.append(f"{'all':<{width}}  {train:>8}  {val:>8}")
        if few := [name for name, (_, val) in plan.counts.items() if not val]:
            lines.append(
                f"classes without val images, since they have fewer than two different images: {', '.join(few)}"
            )
        lines.append(f"{self.root}: train and val are ready; the plan is kept in {PLAN}")
        return "\n".join(lines)


@dataclass
class UndoReport:
    """Result of undoing a split."""

    root: Path
    moved: int

    def describe(self) -> str:
        """Return it as text."""
        return f"{self.root}: {self.moved:,} images are back where they were before the split"


def can_split(root: Path) -> bool:
    """Whether a folder has class folders, or a list of labels, that can be divided."""
    if not root.is_dir() or any((root / "annotations").glob("instances_*.json")):
        return False
    if (root / PLAN).exists() or available_splits(root):
        return True
    folders = [folder for folder in root.iterdir() if folder.is_dir() and next(image_files(folder), None) is not None]
    return len(folders) > 1  # one is a folder of images without classes


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
    plan = _read_plan(root)
    resumed = plan is not None
    if plan is None:
        if not splits and is_split(root):
            raise FishnetError(f"{root} is one split of a data set; did you mean `fishnet data split {root.parent}`?")
        plan = _make_plan(root, splits, val, seed, copy, progress)
        _write_plan(root, plan)
    verb = "copying" if plan.copy else "moving"
    back = "" if plan.copy else f"; `fishnet data split {root} --undo` moves them back"
    announce(f"{verb} {len(plan.moves):,} images within {root}, as its {PLAN} lists{back}")
    _carry_out(root, plan)
    plan.done = True
    _write_plan(root, plan)
    return SplitReport(root, plan, resumed)


def undo_split(root: Path) -> UndoReport:
    """Move the files of the last split back, and restore its `labels.csv`.

    Raises:
        FishnetError: There is no split to undo, it copied the files, or a file is missing or in the way; no file is
            lost, and the next call continues.
    """
    plan = _read_plan(root, done=True)
    if plan is None:
        raise FishnetError(f"{root} has no {PLAN} of `fishnet data split`; there is nothing to undo")
    if plan.copy:
        raise FishnetError(f"the split of {root} copied its files; remove {root / 'train'} and {root / 'val'} instead")
    back = SplitPlan(plan.val, plan.seed, False, plan.counts, [(new, old) for old, new in plan.moves])
    present = [move for move in back.moves if _present(root / move[0]) or not _present(root / move[1])]
    _carry_out(root, replace(back, moves=present))
    for name, text in plan.before.items():
        atomic_write(root / name, text)
    for name in plan.lists.keys() - plan.before.keys():
        (root / name).unlink(missing_ok=True)
    for name in ("val", "train"):
        with suppress(OSError):
            (root / name).rmdir()
    (root / PLAN).unlink()
    return UndoReport(root, len(plan.moves))


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


def _read_plan(root: Path, done: bool = False) -> SplitPlan | None:
    """Return the plan of an interrupted split, with `done` also of a completed one; None if there is none."""
    path = root / PLAN
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        plan = SplitPlan(**document)
        plan.moves = [(str(old), str(new)) for old, new in plan.moves]
        plan.counts = {name: (train, val) for name, (train, val) in plan.counts.items()}
        names = [PurePosixPath(name) for name in [*plan.lists, *(name for move in plan.moves for name in move)]]
        if plan.format_version != 1 or any(name.is_absolute() or ".." in name.parts for name in names):
            raise ValueError("paths outside the data folder or another version")
    except (ValueError, TypeError, AttributeError) as error:
        raise FishnetError(
            f"{path} is not a plan of `fishnet data split` ({error}); rename it and run again"
        ) from error
    return None if plan.done and not done else plan


def _write_plan(root: Path, plan: SplitPlan) -> None:
    atomic_write(root / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def _carry_out(root: Path, plan: SplitPlan) -> None:
    """Move or copy each file to its new path; files that are already there are kept, none are overwritten."""
    for old, new in plan.moves:
        source, target = root / old, root / new
        at_source, at_target = _present(source), _present(target)
        if at_target and at_source and not plan.copy:
            raise FishnetError(
                f"cannot move {source} to {target}, which already exists; remove one of the two and run again"
            )
        if not at_target and not at_source:
            raise FishnetError(f"{source} disappeared before it could be moved to {target}; restore it and run again")
        if at_target:
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if plan.copy:
                with atomic_path(target) as partial:
                    shutil.copy2(source, partial)
            else:
                source.rename(target)
        except OSError as error:
            raise FishnetError(
                f"cannot move {source} to {target} ({error.strerror or error}); no file is lost, "
                f"run again to continue with the plan in {root / PLAN}"
            ) from error
    for name, text in plan.lists.items():
        atomic_write(root / name, text)
    if not plan.copy:
        _remove_emptied(root, {(root / old).parent for old, _ in plan.moves})


def _present(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove_emptied(root: Path, folders: set[Path]) -> None:
    """Remove folders that the moves have emptied, the deepest first; folders with other content are kept."""
    nested = {parent for folder in folders for parent in (folder, *folder.parents) if root in parent.parents}
    for folder in sorted(nested, key=lambda folder: -len(folder.parts)):
        if folder.name not in ("train", "val"):
            with suppress(OSError):
                folder.rmdir()
