"""Two processes compute what one does with the same global batch, and judge what they save."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fishnet.metrics import MetricsFile
from tests.processes import run, run_here
from tests.training.test_module import photos

__all__ = ["photos"]

MODEL = ["--model", "fishnet_nano", "--model-option", "stem_stride=2", "--size", "32", "--batch-size", "80"]


def losses(out: Path) -> list[float]:
    return [
        float(row["value"])
        for row in MetricsFile(out / "metrics.csv").read()
        if row["name"] == "loss" and row["split"] == "train"
    ]


def test_two_processes_give_the_losses_of_one(mini: Callable[[str], Path], nano_weights: Path, tmp_path: Path) -> None:
    common = [
        *("train", "classification", "--data", mini("cifar10"), *MODEL),
        "--weights",
        nano_weights,
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
    torch.set_num_threads(1)
    run_here(*common, "--out", tmp_path / "one")
    run(*common, "--out", tmp_path / "two", "--devices", "2", "--memory", "saver")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    worst = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
    print(f"largest relative difference of 20 losses: {worst:.2e}")
    assert worst <= 1e-4
    assert all(math.isfinite(value) for value in two)


WATCHED = """
import sys
import torch
from fishnet.cli import main
from fishnet.training.module import TrainingModule

judge = TrainingModule.evaluate_split

def watched(self, *arguments, **options):
    found = judge(self, *arguments, **options)
    torch.save(dict(self.named_buffers()), sys.argv[1] + f"/buffers_{self.global_rank}.pt")
    return found

TrainingModule.evaluate_split = watched
sys.exit(main(sys.argv[2:]))
"""


def test_processes_judge_the_network_that_is_saved(photos: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "watched.py", tmp_path / "run"
    script.write_text(WATCHED)
    few = ["--epochs", "2", "--lr", "0.05", "--ema", "0.5", "--workers", "0", "--devices", "2", "--device", "cpu"]
    command = ["train", "classification", "--data", photos, *MODEL[:-1], "20", *few, "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path, *command], check=True, env=environment, timeout=300)
    one, two = (torch.load(tmp_path / f"buffers_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert {name.partition(".")[0] for name in one} == {"model", "ema"}
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    counters = [value for name, value in one.items() if name.endswith("num_batches_tracked")]
    assert {(value.dtype, int(value)) for value in counters} == {(torch.int64, 2 * 60 // 20)}
    run_here("evaluate", out, "--data", photos, "--json", tmp_path / "found.json", "--device", "cpu", "--workers", "0")
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))["metrics"]
    rows = [row for row in MetricsFile(out / "metrics.csv").read() if row["split"] == "val"]
    best = max((float(row["value"]), -int(row["epoch"])) for row in rows if row["name"] == "top1")
    logged = {row["name"]: float(row["value"]) for row in rows if int(row["epoch"]) == -best[1]}
    assert found == pytest.approx(logged, abs=1e-6)
