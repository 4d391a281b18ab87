"""Training through the command line, and what the run folder says of it afterwards."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from fishnet.metrics import MetricsFile


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Return a script's own arguments, and those behind `--` or unknown to it, which are for `fishnet train`."""
    arguments, more = parser.parse_known_args()
    return arguments, [option for option in more if option != "--"]


def fishnet(*arguments: str | Path, threads: int | None = None) -> float:
    """Run `fishnet ARGUMENTS` and return its minutes, start-up included; its output is shown.

    Args:
        arguments: Command line.
        threads: Number of compute threads; None uses all cores.

    Raises:
        CalledProcessError: It failed.
    """
    begin = time.perf_counter()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run([sys.executable, "-m", "fishnet", *map(str, arguments)], check=True, env=environment)
    return (time.perf_counter() - begin) / 60


def series(out: Path, name: str, split: str = "val", file: str = "metrics.csv") -> list[float]:
    """Return the values of one figure of a run, in the order in which they were written."""
    rows = MetricsFile(out / file).read()
    return [float(row["value"]) for row in rows if row["split"] == split and row["name"] == name]


def last(out: Path, name: str, split: str = "val") -> float:
    """Return the last value of one figure of a run."""
    return series(out, name, split)[-1]
