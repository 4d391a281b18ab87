"""Two processes compute what one does with the same global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from fishnet.metrics import MetricsFile
from tests.training import run

MODEL = ["--model", "fishnet_nano", "--model-option", "stem_stride=2", "--size", "32", "--batch-size", "80"]


def losses(out: Path) -> list[float]:
    return [
        float(row["value"])
        for row in MetricsFile(out / "metrics.csv").read()
        if row["name"] == "loss" and row["split"] == "train"
    ]


def test_two_processes_give_the_losses_of_one(mini: Callable[[str], Path], tmp_path: Path) -> None:
    data = ["train", "classification", "--data", mini("cifar10"), *MODEL]
    run(*data, "--out", tmp_path / "start", "--epochs", "1", "--workers", "1")
    common = [
        *data,
        "--weights",
        tmp_path / "start",
        "--epochs",
        "1",
        "--max-steps",
        "20",
        "--norm",
        "frozen",
        "--lr",
        "0.0001",
    ]
    common += ["--log-every", "1", "--workers", "1"]
    run(*common, "--out", tmp_path / "one")
    run(*common, "--out", tmp_path / "two", "--devices", "2")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    worst = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
    print(f"largest relative difference of 20 losses: {worst:.2e}")
    assert worst <= 1e-4
    assert all(math.isfinite(value) for value in two)
