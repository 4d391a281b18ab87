"""300 photos and no recipe named: what the bare command reaches, in this checkout and in an older one.

python benchmarks/small_photos.py run PETS3 [--older CHECKOUT] [--jobs 2] [--only TEXT]
python benchmarks/small_photos.py table

PETS3 is the embedded set (`unpack.py DEST pets3`), CHECKOUT a working tree of an older commit (`git worktree add`). The
command is `fishnet train TASK --data PETS3 --model fishnet_nano --out RUN`; the seed is its only other option, and for
detection 12 epochs instead of the 40 of its recipe, which is the same in both. Finished
runs are kept in docs/results/runs/small_photos.json, interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from record import RESULTS, record
from runs import last, series

PROJECT = Path(__file__).resolve().parents[1]
RUNS = RESULTS / "runs" / "small_photos.json"
FIGURES = {"classification": ("top1",), "detection": ("box_ap", "mask_ap")}
SEEDS = (0, 1)
SHORT = {"detection": ("--epochs", "12")}


class Trial(NamedTuple):
    """One run."""

    task: str
    source: str
    """`this` checkout, or the `older` one."""
    seed: int

    @property
    def key(self) -> str:
        """Name in the file of all runs."""
        return f"{self.task}, {self.source}, seed {self.seed}"


def trials() -> Iterator[Trial]:
    """Yield all runs."""
    for task in FIGURES:
        for seed in SEEDS:
            for source in ("this", "older"):
                yield Trial(task, source, seed)


def done() -> dict[str, dict[str, Any]]:
    """Return the metrics of all finished runs."""
    return json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else {}


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def train(trial: Trial, arguments: argparse.Namespace, lock: Lock) -> None:
    """Train one run, or what is left of it, and add its figures to the file."""
    checkout = PROJECT if trial.source == "this" else arguments.older
    out = arguments.out / trial.key.replace(", ", "_").replace(" ", "_")
    go_on = "--resume" if (out / "checkpoints" / "last.ckpt").exists() else "--overwrite"
    command = ["train", trial.task, "--data", arguments.data, "--model", "fishnet_nano", "--out", out]
    command += ["--seed", trial.seed, go_on, *SHORT.get(trial.task, ())]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))} if arguments.jobs > 1 else {}
    environment = {**os.environ, **threads, "PYTHONPATH": str(checkout / "src")}
    subprocess.run([sys.executable, "-m", "fishnet", *map(str, command)], check=True, env=environment)
    seconds = [value for split in ("train", "val") for value in series(out, "seconds", split, "timing.csv")]
    found = {name: last(out, name) for name in FIGURES[trial.task]}
    found |= {"minutes": sum(seconds) / 60, "jobs": arguments.jobs, "commit": commit_of(checkout)}
    with lock:
        RUNS.parent.mkdir(parents=True, exist_ok=True)
        RUNS.write_text(json.dumps({**done(), trial.key: found}, indent=1) + "\n", "utf-8")


def run(arguments: argparse.Namespace) -> None:
    """Train the missing runs."""
    missing = [trial for trial in trials() if trial.key not in done() and arguments.only in trial.key]
    missing = [trial for trial in missing if trial.source == "this" or arguments.older]
    lock = Lock()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda trial: train(trial, arguments, lock), missing))


def table() -> None:
    """Write the result."""
    found, lines, said, better = done(), [], [], True
    for task, names in FIGURES.items():
        for name in names:
            means = {}
            for source in ("this", "older"):
                runs = [found[key] for seed in SEEDS if (key := Trial(task, source, seed).key) in found]
                if not runs:
                    continue
                means[source] = statistics.fmean(one[name] for one in runs)
                row = {"task": task, "checkout": source, "figure": name.replace("_", " ")}
                row |= {"value": " / ".join(f"{one[name]:.3f}" for one in runs)}
                row |= {"minutes": " / ".join(f"{one['minutes']:.1f}" for one in runs), "commit": runs[0]["commit"]}
                lines.append(row)
            if len(means) == 2:
                margin = means["this"] - means["older"]
                said.append(f"{task} {name.replace('_', ' ')} {means['this']:.3f}, {margin:+.3f}")
                better &= margin > 0
    record(
        "31_small_photos",
        "300 photos of pets, no recipe named, fishnet_nano: this checkout against an older one",
        "better than the older one in classification and detection, 2 seeds",
        "; ".join(said),
        better if said else None,
        lines,
        note="figures are those of the last epoch; detection with --epochs 12 in both checkouts",
    )


def main() -> None:
    """Train, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--older", type=Path, help="working tree of an older commit")
    parser.add_argument("--out", type=Path, default=Path("runs/small_photos"))
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
    elif arguments.data is None:
        parser.error("run needs PETS3")
    else:
        run(arguments)


if __name__ == "__main__":
    main()
