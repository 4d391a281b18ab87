"""Times of several candidates that take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fishnet.environment import processor_name

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that decide on the speed of networks."""


class Ratio(NamedTuple):
    """How many times as fast one candidate is as another: median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the figure with its spread."""
        return f"{self.median:.2f}x (quartiles {self.low:.2f} to {self.high:.2f})"


class Worker:
    """A candidate in a separate process, which runs a script with `serve`: one turn per request.

    Args:
        script: Script of the benchmark.
        arguments: Its arguments.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, script, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> dict[str, float]:
        """Run one turn and return its figures."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._process.args[1:])} ended with {self._process.wait()}")
        return {name: float(value) for name, value in json.loads(line).items()}

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(turn: Callable[[], dict[str, float]]) -> None:
    """Run a turn for every line on standard input and print its figures, for a `Worker`."""
    for _ in sys.stdin:
        gc.collect()
        print(json.dumps(turn()), flush=True)


def take_turns(workers: Mapping[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return the metrics of every candidate in every round; one more round before these warms up.

    Args:
        workers: Candidates by name; each runs once per round, in this order.
        rounds: Number of rounds that count.
    """
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, run in workers.items():
            found = run()
            if turn:
                figures[name].append(found)
    return figures


def seconds_of(figures: Mapping[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """Return the seconds of every candidate in every round."""
    return {name: [turn["seconds"] for turn in turns] for name, turns in figures.items()}


def ratio(slow: list[float], fast: list[float]) -> Ratio:
    """Return how many times as fast the second candidate is, over the rounds."""
    values = [a / b for a, b in zip(slow, fast, strict=True)]
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Ratio(statistics.median(values), quarters[0], quarters[2])


def rows(seconds: Mapping[str, list[float]], reference: str) -> list[dict[str, Any]]:
    """Return one row per candidate: median, quartiles, and the ratio to the reference."""
    found = []
    for name, values in seconds.items():
        quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        found.append(
            {
                "candidate": name,
                "median seconds": f"{statistics.median(values):.3f}",
                "quartiles": f"{quarters[0]:.3f} to {quarters[2]:.3f}",
                "times as fast": str(ratio(seconds[reference], values)),
            }
        )
    return found


def machine() -> str:
    """Return processor, its instructions, and the number of threads."""
    try:
        words = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:
        words = set()
    known = ", ".join(flag for flag in FLAGS if flag in words) or "instructions unknown"
    return f"{processor_name()} ({known}), {torch.get_num_threads()} threads"
