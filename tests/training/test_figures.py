"""Losses of accumulated batches, and which epoch is best."""

from __future__ import annotations

import math

import torch

from fishnet.drawing.display import Display, Score
from fishnet.training.module import mean_losses


def test_losses_are_averaged_over_the_batches_that_have_them() -> None:
    box, mask, total = torch.tensor(1.0), torch.tensor(4.0), torch.tensor(5.0)
    found = mean_losses([{"box": box, "loss": box}, {"box": 3 * box, "mask": mask, "loss": total}])
    assert {name: float(value) for name, value in found.items()} == {"box": 2.0, "loss": 3.0, "mask": 4.0}


def test_any_number_is_better_than_nan_and_nan_is_never_better() -> None:
    display = Display({"loss": Score("loss", smaller_is_better=True)})
    for name in ("top1", "loss"):
        assert display.is_better(name, 0.1, None)
        assert display.is_better(name, math.nan, None)
        assert display.is_better(name, 0.0, math.nan)
        assert not display.is_better(name, math.nan, math.nan)
        assert not display.is_better(name, math.nan, 0.0)
        assert not display.is_better(name, 0.1, 0.1)
    assert display.is_better("top1", 0.2, 0.1)
    assert not display.is_better("loss", 0.2, 0.1)
    assert display.is_better("loss", 0.1, 0.2)
