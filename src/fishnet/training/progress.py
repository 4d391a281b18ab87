"""Progress of a run, for people and for timing.csv."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

Item = TypeVar("Item")


class Stopwatch:
    """Shares of the time spent waiting for data and training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin an epoch."""
        self.begin = self.mark = time.perf_counter()
        self.waited = 0.0

    def data_arrived(self) -> None:
        """Count the time since the last batch ended as waiting."""
        self.waited += time.perf_counter() - self.mark

    def batch_done(self) -> None:
        """Note the end of a batch."""
        self.mark = time.perf_counter()


def with_progress(items: Iterator[Item], total: int, what: str, enabled: bool) -> Iterator[Item]:
    """Hand items on behind a progress bar that leaves no line."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, desc=what, leave=False, disable=None if enabled else True))


@runtime_checkable
class ShowsLoss(Protocol):
    """A Lightning module that tells its loss."""

    def recent_loss(self) -> float:
        """Return the mean loss of the optimizer step in progress."""
        ...


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the loss and the learning rate of the run."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands at the end of the bar."""
        assert isinstance(pl_module, ShowsLoss)
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        return {"loss": f"{pl_module.recent_loss():.3f}", "lr": f"{rate:.2e}"}


def progress_bars(log_every: int) -> list[pl.Callback]:
    """Return a progress bar on a terminal, and nothing where the output goes to a file: an epoch has a line of its own.

    Args:
        log_every: Optimizer steps between two updates.
    """
    return [ProgressBar(refresh_rate=max(1, log_every))] if sys.stdout.isatty() else []
