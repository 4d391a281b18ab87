"""Remarks on settings that are rarely intended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fishnet.config import OptimConfig, TrainConfig
from fishnet.training.advice import advice


def job(images: int, batch_size: int, epochs: int = 10, warmup: float = 0.0) -> Any:
    optim = OptimConfig(warmup_epochs=warmup)
    config = TrainConfig(batch_size=batch_size, epochs=epochs, optim=optim)
    return SimpleNamespace(config=config, train_data=range(images), train_order=dict)


@pytest.mark.parametrize(
    ("epochs", "warmup", "text"),
    [(2, 5, "2 epochs are within the 5 warm-up epochs"), (1, 1.5, "1 epoch is within the 1.5 warm-up epochs")],
)
def test_epochs_within_the_warmup_are_a_warning(epochs: int, warmup: float, text: str) -> None:
    (line,) = advice(job(40, 20, epochs, warmup))
    assert line.startswith(f"warning: {text}, ")


def test_images_that_every_epoch_leaves_out_are_named_if_there_are_many() -> None:
    (line,) = advice(job(60, 32))
    assert line.startswith("28 of 60 images are left out of each epoch")
    assert not advice(job(66, 32))
    assert not advice(job(64, 32, 6, 5))
