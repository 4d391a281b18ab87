"""Progress bars and timing of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

Item = TypeVar("Item")


class Stopwatch:
    """Measures the time of an epoch, and the part of it spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start an epoch."""
        self.begin = self.mark = time.perf_counter()
        self.waited = 0.0

    def data_arrived(self) -> None:
        """Count the time since the end of the last batch as waiting."""
        self.waited += time.perf_counter() - self.mark

    def batch_done(self) -> None:
        """Mark the end of a batch."""
        self.mark = time.perf_counter()


def duration(seconds: float) -> str:
    """Return a time in rounded words, such as `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_progress(items: Iterator[Item], total: int, what: str, enabled: bool) -> Iterator[Item]:
    """Iterate over items with a progress bar that is removed at the end."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, desc=what, leave=False, disable=None if enabled else True))


@runtime_checkable
class ShowsLoss(Protocol):
    """A Lightning module that reports its loss."""

    def recent_loss(self) -> float:
        """Return the mean loss of the optimizer step in progress."""
        ...


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the loss and the learning rate of the run."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the values shown at the end of the bar."""
        assert isinstance(pl_module, ShowsLoss)
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        return {"loss": f"{pl_module.recent_loss():.3f}", "lr": f"{rate:.2e}"}


def progress_bars(log_every: int) -> list[pl.Callback]:
    """Return a progress bar on a terminal, and none if the output goes to a file, where each epoch prints one line.

    Args:
        log_every: Optimizer steps between two updates.
    """
    return [ProgressBar(refresh_rate=max(1, log_every))] if sys.stdout.isatty() else []
