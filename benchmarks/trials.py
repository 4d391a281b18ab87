"""Networks trained one after the other or side by side, with the metrics of all finished runs in one file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from runs import fishnet, last, series
from torch import Tensor, nn

from fishnet.environment import describe_hardware, source_commit
from fishnet.loading import load_model
from fishnet.metrics import MetricsFile
from fishnet.models.complexity import count
from fishnet.models.network import Network

COUNTED_AT = (224, 320)
"""Height and width of the image for which multiply-adds are counted."""


class Dense(nn.Module):
    """Part of a network whose work does not depend on what an image shows: trunk and neck of a detector,
    all of others."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the levels of a batch (N, C, H, W) by name, or the logits."""
        if "region" in self.network.heads and len(self.network.heads) == 1:
            return self.network.necks["region"](self.network.trunk(batch).maps)
        return {f"{head}_{n}": v for head, raw in self.network.raw(batch).items() for n, v in raw.items()}


@dataclass(frozen=True)
class Trial:
    """One training run."""

    key: str
    """Name in the file of all runs."""
    options: list[str]
    """Options of `fishnet train TASK`; {weights} stands for the file or run to start from."""


@dataclass
class Trials:
    """Runs whose figures are collected in a JSON file, so that they can grow over several calls.

    Args:
        file: Metrics of the finished runs, by key.
        figures: Names of the figures, those of the last epoch; empty takes all.
        task: Task of the runs.
        counted_at: Height and width of the image for which multiply-adds are counted.
        split: Split on which a finished run is evaluated, if it is not the one that it was validated on.
    """

    file: Path
    figures: Sequence[str]
    task: str = "detection"
    counted_at: tuple[int, int] = COUNTED_AT
    split: str = "val"
    _lock: Lock = field(default_factory=Lock)

    def done(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of all finished runs."""
        return json.loads(self.file.read_text("utf-8")) if self.file.exists() else {}

    def train(self, trials: Sequence[Trial], data: Path, out: Path, weights: Path | None, jobs: int) -> None:
        """Train the runs that are not finished; interrupted ones are resumed.

        Args:
            trials: Runs, in the order in which they are started.
            data: COCO folder.
            out: Folder of the run folders.
            weights: What {weights} stands for; without it the trials that need it are left out.
            jobs: Runs side by side, which share the cores.
        """
        done = self.done()
        missing = [
            one for one in trials if one.key not in done and (weights or "{weights}" not in " ".join(one.options))
        ]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda one: self._train(one, data, out, weights, jobs), missing))

    def _train(self, trial: Trial, data: Path, out: Path, weights: Path | None, jobs: int) -> None:
        folder = out / "".join(c if c.isalnum() else "_" for c in trial.key)
        options = [option.format(weights=weights) for option in trial.options]
        go_on = "--resume" if (folder / "checkpoints" / "last.ckpt").exists() else "--overwrite"
        threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
        fishnet("train", self.task, "--data", data, "--out", folder, go_on, *options, threads=threads)
        network, _ = load_model(folder)
        seconds = [value for split in ("train", "val") for value in series(folder, "seconds", split, "timing.csv")]
        found = {
            "options": " ".join(trial.options).format(weights="RUN"),
            "minutes": sum(seconds) / 60,
            "jobs": jobs,
            "params": sum(parameter.numel() for parameter in network.parameters()),
            "trunk": sum(parameter.numel() for parameter in network.trunk.parameters()),
            "macs": count(Dense(network), self.counted_at).macs,
            **self._figures(folder, data, threads),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": describe_hardware()["processor"],
            "commit": source_commit(),
        }
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({**self.done(), trial.key: found}, indent=1) + "\n", "utf-8")
        shutil.rmtree(folder / "checkpoints")

    def _figures(self, folder: Path, data: Path, threads: int | None) -> dict[str, float]:
        if not self.figures:
            rows = MetricsFile(folder / "metrics.csv").read()
            return {row["name"]: float(row["value"]) for row in rows if row["split"] == self.split}
        if self.split == "val":
            return {name: last(folder, name) for name in self.figures}
        out = folder / f"evaluation_{self.split}.json"
        fishnet("evaluate", folder, "--data", data, "--split", self.split, "--json", out, threads=threads)
        found = json.loads(out.read_text("utf-8"))["metrics"]
        return {name: found[name] for name in self.figures}


def cost_of(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return precision and minutes of runs that differ in the seed as columns of a table."""
    words = [run["options"].split() for run in runs]
    names = [one[one.index("--precision") + 1] if "--precision" in one else "fp32" for one in words]
    return {
        "precision": names[0] if len(set(names)) == 1 else " / ".join(names),
        "minutes": " / ".join(f"{run['minutes']:.1f}" for run in runs),
    }


def sizes_of(run: dict[str, Any]) -> dict[str, str]:
    """Return parameters and multiply-adds of a finished run as columns of a table."""
    return {
        "parameters (trunk)": f"{run['params'] / 1e6:.2f} M ({run['trunk'] / 1e6:.2f} M)",
        "multiply-adds": f"{run['macs'] / 1e9:.2f} G",
    }
