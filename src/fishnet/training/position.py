"""How far a checkpoint is, and which settings and data a run may go on with from there.

Inside an epoch the images that are left depend on how the epoch was divided into optimizer steps, so nothing that
this depends on may change. Between epochs it may, and the schedule goes on at the epoch reached, whatever the number
of steps before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from fishnet.config import TrainConfig
from fishnet.data.loader import TrainBatches
from fishnet.errors import UsageError
from fishnet.runs import RunFolder
from fishnet.tasks.base import Training
from fishnet.training.optimizer import Checkpoint

DIVISION = "division"
"""Entry of a checkpoint: what the division of an epoch into optimizer steps depends on, see `division_of`."""
_BATCHES = "epoch_loop.batch_progress"
_OF_STEPS = {
    "batch_size": "batch_size {}",
    "seed": "seed {}",
    "images": "{} training images",
    "shown": "{} images per epoch",
}
"""Parts of a division that fix the images of each optimizer step, as messages name them; accumulate does not."""


def train_batches(job: Training, rank: int = 0, world: int | None = None) -> TrainBatches:
    """Return the batches of the training split for one process.

    Args:
        job: What to train.
        rank: Index of the process.
        world: Number of processes; by default that of the settings.
    """
    config = job.config
    world = world or config.devices * config.nodes
    length, order = len(job.train_data), job.train_order()
    return TrainBatches(length, config.batch_size, config.accumulate, rank, world, config.seed, **order)


def division_of(batches: TrainBatches) -> dict[str, int]:
    """Return what the division of an epoch into optimizer steps depends on."""
    return {
        "batch_size": batches.batch_size,
        "accumulate": batches.accumulate,
        "seed": batches.seed,
        "images": batches.samples,
        "shown": batches.length,  # more than there are if some are repeated
    }


class Position(NamedTuple):
    """How far a checkpoint is."""

    step: int
    """Optimizer steps."""
    epochs: int
    """Finished epochs."""
    begun: int
    """Optimizer steps of the epoch that is not finished."""
    validated: bool
    """Whether its validation is done."""
    division: dict[str, int]
    """How its epochs were divided, by `division_of`."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch so far."""
        return self.division["shown"] // self.division["batch_size"]

    def offset(self, steps_per_epoch: int) -> int:
        """Return what a step of the run is ahead of in a run that always had this number of steps per epoch."""
        return self.epochs * steps_per_epoch + self.begun - self.step


def position_of(checkpoint: Checkpoint) -> Position:
    """Return how far a checkpoint is."""
    keeper = next(value for key, value in checkpoint["callbacks"].items() if key.startswith("RunKeeper"))
    loop = checkpoint["loops"]["fit_loop"]
    epochs, division = loop["epoch_progress"]["current"]["processed"], checkpoint[DIVISION]
    loaders = loop["state_dict"].get("combined_loader", [])
    begun = sum(loader["batches"] for loader in loaders) // division["accumulate"]  # there is one loader at most
    return Position(int(checkpoint["global_step"]), int(epochs), begun, bool(keeper["validated"]), division)


def read_position(checkpoint: Path) -> Position:
    """Return how far the checkpoint in a file is."""
    return position_of(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))


def check_position(job: Training, run: RunFolder) -> None:
    """Refuse to resume a run to fewer epochs than it has, or with other steps in an epoch that has begun.

    Raises:
        UsageError: The settings or the data do not fit the position of the run.
    """
    if not run.last.exists():
        return
    position, config = read_position(run.last), job.config
    if position.epochs > config.epochs:
        raise UsageError(
            f"--epochs {config.epochs}: {run.path} has finished {position.epochs} epochs already; give more of them"
        )
    before, now = position.division, division_of(train_batches(job))
    changed = [name for name in _OF_STEPS if before[name] != now[name]]
    if not position.begun or not changed:
        return
    if "images" in changed and "shown" in changed:
        changed.remove("shown")
    changes = ", ".join(_OF_STEPS[name].format(f"{before[name]} -> {now[name]}") for name in changed)
    kept = ", ".join(_OF_STEPS[name].format(before[name]) for name in changed)
    end = position.step - position.begun + position.steps_per_epoch
    raise UsageError(
        f"--resume: {run.path} stopped inside epoch {position.epochs + 1} ({position.begun} of its "
        f"{position.steps_per_epoch} steps are done), where {changes} would show images twice or not at all; resume "
        f"with {kept}, up to the end of the epoch with --max-steps {end}, and change it there"
    )


def describe_position(position: Position, config: TrainConfig, steps_per_epoch: int) -> str:
    """Return the line about where a run goes on, and about epochs that have another number of steps from there on."""
    line = f"resuming at step {position.step}"
    if steps_per_epoch != position.steps_per_epoch and position.epochs < config.epochs:
        first, before = position.epochs + 1, position.steps_per_epoch
        line += f": {steps_per_epoch} optimizer steps per epoch from epoch {first} on, {before} before"
    return line


def follow_accumulation(checkpoint: Checkpoint, accumulate: int) -> None:
    """Rewrite the position of a checkpoint inside an epoch for another number of batches per optimizer step.

    Checkpoints are taken after optimizer steps, whose images do not depend on how many batches they are split into.

    Args:
        checkpoint: Loaded checkpoint, changed in place.
        accumulate: Batches per optimizer step from now on.
    """
    loop, before = checkpoint["loops"]["fit_loop"], checkpoint[DIVISION]["accumulate"]
    for loader in loop["state_dict"].get("combined_loader", []):
        loader["batches"] = loader["batches"] // before * accumulate
    counts = loop[_BATCHES]["current"]
    pending = counts["ready"] - counts["completed"]  # 1 where it was saved before Lightning counted the last batch
    counts.update(dict.fromkeys(("ready", "started", "processed"), counts["ready"] // before * accumulate))
    counts["completed"] = counts["ready"] - pending
