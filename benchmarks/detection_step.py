"""Time of a Mask R-CNN step with this library's RoIAlign and with torchvision's, and whether their losses agree.

python benchmarks/detection_step.py PENNFUDAN [--steps 40]

PENNFUDAN is the embedded set (`unpack.py DEST pennfudan`). fishnet_tiny is trained by the recipe `scratch_small`. One
run changes between both from step to step, so that both meet the same load of the machine; one run with each of them
gives the losses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from record import record
from runs import series
from torch.optim.optimizer import register_optimizer_step_post_hook

from fishnet.commands.train import train
from fishnet.models.heads import roi_align as own
from fishnet.training.module import TrainingModule

WARM_UP = 4
KINDS = ("torchvision's", "own")


@contextmanager
def clocked(kind: str | None) -> Iterator[dict[str, list[float]]]:
    """Use one kind of RoIAlign, or change from step to step with None; yield the seconds of the steps of each."""
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    step, fast = TrainingModule.training_step, own._own
    now, begin = KINDS[0], 0.0

    def first(module: TrainingModule, *arguments: object) -> object:
        nonlocal now, begin
        now = kind or KINDS[sum(map(len, seconds.values())) % 2]
        own._own = fast if now == "own" else lambda _: False
        begin = time.perf_counter()
        return step(module, *arguments)

    hook = register_optimizer_step_post_hook(lambda *_: seconds[now].append(time.perf_counter() - begin))
    try:
        with mock.patch.object(TrainingModule, "training_step", first), mock.patch.object(own, "_own", fast):
            yield seconds
    finally:
        hook.remove()


def run(data: Path, out: Path, steps: int, kind: str | None) -> dict[str, list[float]]:
    """Train some steps and return the seconds of each, by kind."""
    settings = {"recipe": "scratch_small", "model": "fishnet_tiny", "data": str(data), "out": str(out)}
    with clocked(kind) as seconds:
        train("detection", **settings, max_steps=steps, epochs=20, log_every=1, validate_every=20, device="cpu")
    return seconds


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(arguments.data, Path(folder) / "times", arguments.steps, None)
        losses = []
        for kind in KINDS:
            run(arguments.data, Path(folder) / kind, 20, kind)
            losses.append(series(Path(folder) / kind, "loss", "train"))
    medians = {kind: statistics.median(values[WARM_UP // 2 :]) for kind, values in seconds.items()}
    ratio = medians[KINDS[0]] / medians["own"]
    difference = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    table = []
    for kind, values in seconds.items():
        quarters = statistics.quantiles(values[WARM_UP // 2 :], n=4)
        spread = f"{quarters[0]:.2f} to {quarters[2]:.2f}"
        table.append({"RoIAlign": kind, "seconds per step": f"{medians[kind]:.2f}", "quartiles": spread})
    record(
        "41_detection_step",
        "Mask R-CNN step of fishnet_tiny, recipe scratch_small on Penn-Fudan",
        ">= 1.25 times as fast as with torchvision's RoIAlign, equal losses",
        f"{ratio:.2f} times; largest relative difference of the losses of 20 steps {difference:.1e}",
        ratio >= 1.25 and difference < 1e-3,
        table,
        note=f"{torch.get_num_threads()} threads; forward, backward and optimizer, without loading; steps alternate",
    )


if __name__ == "__main__":
    main()
