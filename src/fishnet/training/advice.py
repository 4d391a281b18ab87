"""Remarks on settings that are valid, but rarely intended."""

from __future__ import annotations

from fishnet.config import TrainConfig
from fishnet.data.loader import TrainBatches
from fishnet.tasks.base import Training
from fishnet.training.position import train_batches

_MOST_LEFT_OUT = 0.1
"""Fraction of the training split that may be left out of each epoch without a remark."""


def advice(job: Training) -> list[str]:
    """Return remarks on the settings of a new run, one line each.

    Args:
        job: What to train; the batch size is not larger than the training split.
    """
    return [*_on_warmup(job.config), *_on_last_batch(train_batches(job))]


def _on_warmup(config: TrainConfig) -> list[str]:
    """Return a remark if the learning rate never reaches its value."""
    warmup, epochs = config.optim.warmup_epochs, config.epochs
    if epochs > warmup or not warmup:
        return []
    shown = "1 epoch is" if epochs == 1 else f"{epochs} epochs are"
    return [
        f"warning: {shown} within the {warmup:g} warm-up epochs, so the learning rate stays below its value; "
        "reduce --optim.warmup-epochs"
    ]


def _on_last_batch(batches: TrainBatches) -> list[str]:
    """Return a remark if many images are left out of each epoch."""
    left = batches.length - batches.steps * batches.batch_size
    if left <= _MOST_LEFT_OUT * batches.length:
        return []
    return [
        f"{left} of {batches.length} images are left out of each epoch, others every time: the last batch of "
        f"{batches.batch_size} would be incomplete"
    ]
