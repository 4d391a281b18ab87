"""Penn-Fudan pedestrians (136 photos to train on, 34 to evaluate on) from scratch: members of the family, and
ablations.

python benchmarks/pennfudan.py run DATA --weights RUN [--jobs 2] [--only TEXT] [train options]
python benchmarks/pennfudan.py tables

DATA is the embedded set (`unpack.py DEST pennfudan`), RUN the CIFAR-10 run of fishnet_nano (benchmarks/cifar10.py).
`run` trains what is missing and adds the figures of each finished run to docs/results/runs/pennfudan.json, so that the
tables can grow over several calls; an interrupted run is resumed. `tables` writes the results from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from record import RESULTS, record
from runs import fishnet, last, parse, series
from torch import Tensor, nn

from fishnet.environment import describe_hardware, source_commit
from fishnet.loading import load_model
from fishnet.models.complexity import count
from fishnet.models.network import Network

FIGURES = ("box_ap50", "box_ap", "mask_ap50", "mask_ap")
FLOOR = {"box_ap50": 0.70, "mask_ap50": 0.65}
COUNTED_AT = (224, 320)
RUNS = RESULTS / "runs" / "pennfudan.json"
SEEDS = (0, 1)
COMMON = ["--recipe", "scratch_small", "--workers", "1", "--heads.preset", "tiny"]
SHORT = ["--epochs", "15", "--validate-every", "15"]
ZERO = "--model-option zero_init_last={}"
MEMBERS = ("fishnet_tiny", "fishnet_small", "resnet18")
ABLATIONS: dict[str, str] = {
    "defaults": "",
    "neck none": "--pyramid.neck none",
    "taps body": "--pyramid.taps body",
    "taps tail": "--pyramid.taps tail",
    "no BN-ReLU before the neck": "--pyramid.norm-relu false",
    "Cascade Mask R-CNN": "--detector cascade_mask_rcnn",
    "fishnet_nano": "--model fishnet_nano",
    "fishnet_nano, trunk from CIFAR-10": "--model fishnet_nano --weights {weights}",
}


class Levels(nn.Module):
    """Trunk and neck of a network, whose work does not depend on what an image shows."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.trunk, self.neck = network.trunk, network.necks["region"]

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the levels of a batch (N, C, H, W) by name."""
        return self.neck(self.trunk(batch).maps)


class Job(NamedTuple):
    """One training run."""

    table: str
    name: str
    zero: bool
    seed: int

    @property
    def key(self) -> str:
        """Name of the run in the file of all runs."""
        return f"{self.table}: {self.name}, zero start {'on' if self.zero else 'off'}, seed {self.seed}"

    def options(self) -> list[str]:
        """Return the options of `fishnet train`."""
        if self.table == "members":
            own = ["--model", self.name]
        else:
            own = [*SHORT, *([] if "--model" in ABLATIONS[self.name] else ["--model", "fishnet_tiny"])]
            own += ABLATIONS[self.name].split()
        return [*COMMON, *own, *ZERO.format(str(self.zero).lower()).split(), "--seed", str(self.seed)]


def jobs() -> Iterator[Job]:
    """Yield all runs, the most telling first."""
    for seed in SEEDS:
        for table, names in (("members", MEMBERS), ("ablations", tuple(ABLATIONS))):
            for name in names:
                for zero in (True, False):
                    yield Job(table, name, zero, seed)


def read_runs() -> dict[str, dict[str, Any]]:
    """Return the figures of all finished runs."""
    return json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else {}


def train(job: Job, arguments: argparse.Namespace, more: list[str], lock: Lock) -> None:
    """Train one run, or what is left of it, and add its figures to the file."""
    out = arguments.out / "".join(c if c.isalnum() else "_" for c in job.key)
    options = [option.format(weights=arguments.weights) for option in [*job.options(), *more]]
    go_on = "--resume" if (out / "checkpoints" / "last.ckpt").exists() else "--overwrite"
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs) if arguments.jobs > 1 else None
    fishnet("train", "detection", "--data", arguments.data, "--out", out, go_on, *options, threads=threads)
    whole, _ = load_model(out)
    seconds = [value for split in ("train", "val") for value in series(out, "seconds", split, "timing.csv")]
    found = {
        "options": " ".join([*job.options(), *more]).format(weights="RUN"),
        "minutes": sum(seconds) / 60,
        "jobs": arguments.jobs,
        "params": sum(parameter.numel() for parameter in whole.parameters()),
        "trunk": sum(parameter.numel() for parameter in whole.trunk.parameters()),
        "macs": count(Levels(whole), COUNTED_AT).macs,
        **{name: last(out, name) for name in FIGURES},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_hardware()["processor"],
        "commit": source_commit(),
    }
    with lock:
        RUNS.parent.mkdir(parents=True, exist_ok=True)
        RUNS.write_text(json.dumps({**read_runs(), job.key: found}, indent=1) + "\n", "utf-8")
    shutil.rmtree(out / "checkpoints")


def run(arguments: argparse.Namespace, more: list[str]) -> None:
    """Train what is missing."""
    done, lock = read_runs(), Lock()
    missing = [job for job in jobs() if job.key not in done and arguments.only in job.key]
    missing = [job for job in missing if arguments.weights or "{weights}" not in " ".join(job.options())]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job: train(job, arguments, more, lock), missing))


def rows(table: str) -> list[dict[str, Any]]:
    """Return the lines of a table: a line per name and start, the figures of all seeds that are done."""
    done, lines = read_runs(), []
    for name in MEMBERS if table == "members" else ABLATIONS:
        for zero in (True, False):
            found = [done[key] for seed in SEEDS if (key := Job(table, name, zero, seed).key) in done]
            if found:
                figures = {n.replace("_", " "): " / ".join(f"{one[n]:.3f}" for one in found) for n in FIGURES}
                lines.append(
                    {
                        "model" if table == "members" else "setting": name,
                        "zero start": "on" if zero else "off",
                        **figures,
                        "parameters (trunk)": f"{found[0]['params'] / 1e6:.2f} M ({found[0]['trunk'] / 1e6:.2f} M)",
                        "multiply-adds": f"{found[0]['macs'] / 1e9:.2f} G",
                        "minutes": " / ".join(f"{one['minutes']:.1f}" for one in found),
                    }
                )
    return lines


def mean(table: str, name: str, zero: bool, figure: str) -> float:
    """Return the mean of a figure over the seeds that are done; NaN if none is."""
    done = read_runs()
    values = [done[key][figure] for seed in SEEDS if (key := Job(table, name, zero, seed).key) in done]
    return statistics.fmean(values) if values else float("nan")


def tables() -> None:
    """Write both results."""
    said = [
        f"{model}, zero start {'on' if zero else 'off'}: "
        + ", ".join(f"{figure.replace('_', ' ')} {mean('members', model, zero, figure):.3f}" for figure in FIGURES)
        for model in MEMBERS
        for zero in (True, False)
    ]
    seeds, size = " / ".join(map(str, SEEDS)), f"{COUNTED_AT[0]}x{COUNTED_AT[1]}"
    note = (
        f"options: {' '.join(COMMON)}; figures of the last epoch, of seeds {seeds}; multiply-adds of trunk and neck "
        f"for an image of {size} pixels; minutes with two runs side by side on two cores, beside other work"
    )
    fish = {name: mean("members", "fishnet_tiny", True, name) for name in FIGURES}
    other = {name: mean("members", "resnet18", True, name) for name in FIGURES}
    record(
        "24_pennfudan",
        "Penn-Fudan from scratch, Mask R-CNN: members of the family and resnet18, recipe scratch_small",
        "box AP50 >= 0.70, mask AP50 >= 0.65; fishnet_tiny at least level with resnet18 in box and mask AP",
        "means of the seeds: " + "; ".join(said),
        all(fish[n] >= floor for n, floor in FLOOR.items()) and all(fish[n] >= other[n] for n in ("box_ap", "mask_ap")),
        rows("members"),
        note=note,
    )
    gains = {
        n: mean("ablations", n, True, "mask_ap") - mean("ablations", "defaults", True, "mask_ap") for n in ABLATIONS
    }
    record(
        "25_ablations",
        "Penn-Fudan from scratch, one choice of fishnet_tiny's detector changed at a time",
        "a table with both seeds, with and without the zero start",
        "change of mask AP against the defaults, zero start on: "
        + ", ".join(f"{n} {g:+.3f}" for n, g in gains.items()),
        None,
        rows("ablations"),
        note=f"{note}; {' '.join(SHORT)}",
    )


def main() -> None:
    """Train, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, help="classification run whose trunk the last ablation starts from")
    parser.add_argument("--out", type=Path, default=Path("runs/pennfudan"))
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    arguments, more = parse(parser)
    if arguments.what == "tables":
        tables()
    elif arguments.data is None:
        parser.error("run needs DATA")
    else:
        run(arguments, more)


if __name__ == "__main__":
    main()
