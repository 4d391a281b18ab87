"""Times of several candidates that take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import gc
import statistics
import time
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


def take_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every candidate in every round; one more round before these warms up.

    Args:
        candidates: What to time, by name; each runs once per round, in this order.
        rounds: Number of rounds that count.
        clock: `time.perf_counter`, or `time.process_time` for the processor time on a machine that others use too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            gc.collect()
            begin = clock()
            run()
            if turn:
                seconds[name].append(clock() - begin)
    return seconds


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
