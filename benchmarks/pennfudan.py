"""Penn-Fudan pedestrians (136 photos to train on, 34 to evaluate on) from scratch: members of the family, and
ablations.

python benchmarks/pennfudan.py run DATA --weights RUN [--jobs 2] [--only TEXT] [train options]
python benchmarks/pennfudan.py tables

DATA is the embedded set (`unpack.py DEST pennfudan`), RUN the CIFAR-10 run of fishnet_nano (benchmarks/cifar10.py).
`run` trains the missing runs and adds the metrics of each finished run to docs/results/runs/pennfudan.json, so that the
tables can grow over several calls; an interrupted run is resumed. `tables` writes the results from that file.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from record import RESULTS, record
from runs import parse
from trials import COUNTED_AT, Trial, Trials, cost_of, sizes_of

FIGURES = ("box_ap50", "box_ap", "mask_ap50", "mask_ap")
FLOOR = {"box_ap50": 0.70, "mask_ap50": 0.65}
RUNS = Trials(RESULTS / "runs" / "pennfudan.json", FIGURES)
SEEDS = (0, 1)
COMMON = ["--recipe", "scratch_small", "--workers", "1", "--heads.preset", "tiny"]
SHORT = ["--epochs", "15", "--validate-every", "15", "--size", "160", "--longest", "240"]
ZERO = "--model-option zero_init_last={}"
MEMBERS = ("fishnet_tiny", "fishnet_small", "resnet18")
ABLATIONS: dict[str, str] = {
    "defaults": "",
    "neck none": "--pyramid.neck none",
    "taps body": "--pyramid.taps body",
    "taps tail": "--pyramid.taps tail",
    "no BN-ReLU before the neck": "--pyramid.norm-relu false",
    "Cascade Mask R-CNN": "--detector cascade_mask_rcnn",
    "resnet18": "--model resnet18",
    "resnet18 of half the width": "--model resnet18 --model-option channels=[32,64,128,256]",
    "fishnet_nano": "--model fishnet_nano",
    "fishnet_nano, trunk from CIFAR-10": "--model fishnet_nano --weights {weights}",
}


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
    for seed, name, zero in itertools.product(SEEDS, MEMBERS, (True, False)):
        yield Job("members", name, zero, seed)
    for zero, seed, name in itertools.product((True, False), SEEDS, ABLATIONS):
        yield Job("ablations", name, zero, seed)


def run(arguments: argparse.Namespace, more: list[str]) -> None:
    """Train the missing runs."""
    trials = [Trial(job.key, [*job.options(), *more]) for job in jobs() if arguments.only in job.key]
    RUNS.train(trials, arguments.data, arguments.out, arguments.weights, arguments.jobs)


def rows(table: str) -> list[dict[str, Any]]:
    """Return the lines of a table: a line per name and start, the figures of all seeds that are done."""
    done, lines = RUNS.done(), []
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
                        **sizes_of(found[0]),
                        **cost_of(found),
                    }
                )
    return lines


def mean(table: str, name: str, zero: bool, figure: str) -> float:
    """Return the mean of a figure over the seeds that are done; NaN if none is."""
    done = RUNS.done()
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
        f"options: {' '.join(COMMON)}; metrics of the last epoch, of seeds {seeds}; multiply-adds of trunk and neck "
        f"for an image of {size} pixels; minutes with two runs side by side on two cores, beside other work"
    )
    fish = {name: mean("members", "fishnet_tiny", True, name) for name in FIGURES}
    other = {name: max(mean("members", "resnet18", zero, name) for zero in (True, False)) for name in FIGURES}
    record(
        "24_pennfudan",
        "Penn-Fudan from scratch, Mask R-CNN: members of the family and resnet18, recipe scratch_small",
        "box AP50 >= 0.70, mask AP50 >= 0.65; fishnet_tiny at least level with resnet18 in box and mask AP",
        "means of the seeds: " + "; ".join(said),
        all(fish[n] >= floor for n, floor in FLOOR.items()) and all(fish[n] >= other[n] for n in ("box_ap", "mask_ap")),
        rows("members"),
        note=note,
    )
    if not rows("ablations"):
        return
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
