"""Training progress of a checkpoint, and which settings and data may change when a run is resumed from it.

Inside an epoch the remaining images depend on how the epoch is divided into optimizer steps, so nothing that this
depends on may change. Between epochs it may, and the schedule continues at the epoch reached, whatever the number of
steps before it.
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
"""Parts of a division that determine the images of each optimizer step, as in messages; accumulate does not."""


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
    """Training progress of a checkpoint."""

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
        """Return the difference of step numbers from those of a run that always had this number of steps per epoch."""
        return self.epochs * steps_per_epoch + self.begun - self.step


def position_of(checkpoint: Checkpoint) -> Position:
    """Return the training progress of a checkpoint."""
    keeper = next(value for key, value in checkpoint["callbacks"].items() if key.startswith("RunKeeper"))
    loop = checkpoint["loops"]["fit_loop"]
    epochs, division = loop["epoch_progress"]["current"]["processed"], checkpoint[DIVISION]
    loaders = loop["state_dict"].get("combined_loader", [])
    begun = sum(loader["batches"] for loader in loaders) // division["accumulate"]  # there is one loader at most
    return Position(int(checkpoint["global_step"]), int(epochs), begun, bool(keeper["validated"]), division)


def read_position(checkpoint: Path) -> Position:
    """Return the training progress of a checkpoint file."""
    return position_of(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))


def check_position(job: Training, run: RunFolder) -> None:
    """Check that a run is not resumed for fewer epochs than it has finished, or with other steps inside an epoch.

    Raises:
        UsageError: The settings or the data are invalid for the position of the run.
    """
    if not run.last.exists():
        return
    position, config = read_position(run.last), job.config
    if position.epochs > config.epochs:
        message = f"{run.path} has already finished {position.epochs} epochs; choose a larger number"
        raise UsageError(f"--epochs {config.epochs}: {message}")
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
        f"{position.steps_per_epoch} steps are done), where {changes} would use images twice or not at all; resume "
        f"with {kept}, up to the end of the epoch with --max-steps {end}, and change it then"
    )


def describe_position(position: Position, config: TrainConfig, steps_per_epoch: int) -> str:
    """Return the line that says where a run continues, and whether the number of steps per epoch changes."""
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
    pending = counts["ready"] - counts["completed"]  # 1 if it was saved before Lightning counted the last batch
    counts.update(dict.fromkeys(("ready", "started", "processed"), counts["ready"] // before * accumulate))
    counts["completed"] = counts["ready"] - pending
