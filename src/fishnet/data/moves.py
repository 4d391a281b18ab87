"""Splits that move files, safe against interruption, and their undoing.

The plan is first written to `split.json` in the data folder. Each file is then either still at its old path or already
at its new one, so running the command again completes an interrupted split.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from fishnet.environment import announce
from fishnet.errors import FishnetError, quoted
from fishnet.files import atomic_path, atomic_write

PLAN = "split.json"


@dataclass
class SplitPlan:
    """Plan of a split; paths are relative to the data folder."""

    val: float
    seed: int
    copy: bool
    counts: dict[str, tuple[int, int]]
    """Number of images of each class, or that contain it, in train and in val."""
    moves: list[tuple[str, str]]
    """Old and new path of each file that is moved."""
    lists: dict[str, str] = field(default_factory=dict)
    """Content of each `labels.csv` to be written after the moves."""
    before: dict[str, str] = field(default_factory=dict)
    """Content of each `labels.csv` before the split."""
    done: bool = False
    unit: str = "images"
    """What the moved files are."""
    images: tuple[int, int] | None = None
    """Number of images in train and in val; None: the sums of `counts`, as an image has one class."""
    format_version: int = 1


@dataclass
class SplitReport:
    """Result of a split."""

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
        train, val = plan.images or [sum(column) for column in zip(*plan.counts.values(), strict=True)]
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
    unit: str

    def describe(self) -> str:
        """Return it as text."""
        return f"{self.root}: {self.moved:,} {self.unit} are back where they were before the split"


def carry_out(root: Path, plan: SplitPlan, resumed: bool = False) -> SplitReport:
    """Move or copy the files of a plan that `write_plan` has written; none is overwritten.

    Args:
        root: Data folder.
        plan: What is moved.
        resumed: Whether an earlier call was interrupted.

    Raises:
        FishnetError: A file is missing or would be overwritten; no file is lost, and the next call continues.
    """
    verb = "copying" if plan.copy else "moving"
    back = "" if plan.copy else f"; `fishnet data split {quoted(root)} --undo` moves them back"
    announce(f"{verb} {len(plan.moves):,} {plan.unit} within {root}, as its {PLAN} lists{back}")
    _move_all(root, plan)
    plan.done = True
    write_plan(root, plan)
    return SplitReport(root, plan, resumed)


def undo_split(root: Path) -> UndoReport:
    """Move the files of the last split back, and restore its `labels.csv`.

    Raises:
        FishnetError: There is no split to undo, it copied the files, or a file is missing or in the way; no file is
            lost, and the next call continues.
    """
    plan = read_plan(root, done=True)
    if plan is None:
        raise FishnetError(f"{root} has no {PLAN} of `fishnet data split`; there is nothing to undo")
    if plan.copy:
        raise FishnetError(f"the split of {root} copied its files; remove {root / 'train'} and {root / 'val'} instead")
    back = SplitPlan(plan.val, plan.seed, False, plan.counts, [(new, old) for old, new in plan.moves])
    present = [move for move in back.moves if _present(root / move[0]) or not _present(root / move[1])]
    _move_all(root, replace(back, moves=present))
    for name, text in plan.before.items():
        atomic_write(root / name, text)
    for name in plan.lists.keys() - plan.before.keys():
        (root / name).unlink(missing_ok=True)
    for name in ("val", "train"):
        with suppress(OSError):
            (root / name).rmdir()
    (root / PLAN).unlink()
    return UndoReport(root, len(plan.moves), plan.unit)


def read_plan(root: Path, done: bool = False) -> SplitPlan | None:
    """Return the plan of an interrupted split, with `done` also of a completed one; None if there is none."""
    path = root / PLAN
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        plan = SplitPlan(**document)
        plan.moves = [(str(old), str(new)) for old, new in plan.moves]
        plan.counts = {name: (train, val) for name, (train, val) in plan.counts.items()}
        plan.images = None if plan.images is None else (int(plan.images[0]), int(plan.images[1]))
        names = [PurePosixPath(name) for name in [*plan.lists, *(name for move in plan.moves for name in move)]]
        if plan.format_version != 1 or any(name.is_absolute() or ".." in name.parts for name in names):
            raise ValueError("paths outside the data folder or another version")
    except (ValueError, TypeError, AttributeError) as error:
        raise FishnetError(
            f"{path} is not a plan of `fishnet data split` ({error}); rename it and run again"
        ) from error
    return None if plan.done and not done else plan


def write_plan(root: Path, plan: SplitPlan) -> None:
    """Write a plan to the data folder."""
    atomic_write(root / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def _move_all(root: Path, plan: SplitPlan) -> None:
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
