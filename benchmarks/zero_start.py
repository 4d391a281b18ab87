"""CIFAR-10 from scratch with and without the zero start of residual branches (`zero_init_last`), recipe cifar10.

python benchmarks/zero_start.py CIFAR10 [--seeds 1] [--out runs/zero_start]

CIFAR10 is the embedded set (`unpack.py DEST cifar10`). Runs below --out that are finished are taken as they are, others
are started, or resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from record import record
from runs import fishnet, parse


def finished(out: Path) -> float | None:
    """Return the top-1 accuracy of the last epoch of a finished run, else None."""
    report = out / "report.html"
    if not report.exists():
        return None
    found = json.loads((out / "evaluation_val.json").read_text("utf-8"))
    return float(found["metrics"]["top1"])


def train(data: Path, out: Path, zero: bool, seed: int, more: list[str]) -> float:
    """Return the top-1 accuracy of a run."""
    found = finished(out)
    if found is None:
        go_on = "--resume" if (out / "checkpoints" / "last.ckpt").exists() else "--overwrite"
        option = f"zero_init_last={str(zero).lower()}"
        command = ["--recipe", "cifar10", "--model-option", option, "--seed", str(seed), *more]
        fishnet("train", "classification", "--data", data, "--out", out, go_on, *command)
        found = finished(out)
        assert found is not None
    return found


def main() -> None:
    """Train the missing runs and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/zero_start"))
    arguments, more = parse(parser)
    found: dict[bool, list[float]] = {False: [], True: []}
    table: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for zero, scores in found.items():
            out = arguments.out / f"{'on' if zero else 'off'}_{seed}"
            scores.append(train(arguments.data, out, zero, seed, more))
            epochs = yaml.safe_load((out / "config.yaml").read_text("utf-8"))["epochs"]
            commit = json.loads((out / "environment.json").read_text("utf-8"))["commit"]
            row = {"zero start": "on" if zero else "off", "seed": seed, "epochs": epochs, "top-1": f"{scores[-1]:.4f}"}
            table.append({**row, "commit": commit})
    off, on = (statistics.fmean(found[zero]) for zero in (False, True))
    record(
        "07b_zero_start",
        "fishnet_nano on CIFAR-10 with and without the zero start of residual branches, recipe cifar10",
        "not behind with the zero start",
        f"{100 * on:.2f}% top-1 with, {100 * off:.2f}% without ({arguments.seeds} seeds)",
        on >= off,
        table,
    )


if __name__ == "__main__":
    main()
