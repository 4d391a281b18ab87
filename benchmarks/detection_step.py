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
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
STEPS = 20
"""Steps of the runs whose losses are compared."""
KINDS = ("torchvision's", "own")


@contextmanager
def clocked(kind: str | None) -> Iterator[dict[str, list[float]]]:
    """Use one kind of RoIAlign, or change from step to step with None; yield the seconds of the steps of each."""
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    step, now, begin = TrainingModule.training_step, KINDS[0], 0.0

    def first(module: TrainingModule, *arguments: object) -> object:
        nonlocal now, begin
        now = kind or KINDS[sum(map(len, seconds.values())) % 2]
        begin = time.perf_counter()
        with pooling(now):
            return step(module, *arguments)

    hook = register_optimizer_step_post_hook(lambda *_: seconds[now].append(time.perf_counter() - begin))
    try:
        with mock.patch.object(TrainingModule, "training_step", first):
            yield seconds
    finally:
        hook.remove()


@contextmanager
def compared() -> Iterator[list[float]]:
    """Compute the loss of every step with both kinds of RoIAlign; yield the relative differences."""
    differences: list[float] = []
    step = TrainingModule.training_step

    def both(module: TrainingModule, *arguments: object) -> torch.Tensor:
        with torch.no_grad(), pooling(KINDS[0]):
            other = step(module, *arguments)
        loss = step(module, *arguments)  # seeds the generator again, so that the samples are the same
        differences.append(abs(loss.item() - other.item()) / abs(other.item()))
        return loss

    with mock.patch.object(TrainingModule, "training_step", both):
        yield differences


def pooling(kind: str) -> AbstractContextManager[object]:
    """Use one kind of RoIAlign."""
    return nullcontext() if kind == "own" else mock.patch.object(own, "_own", return_value=False)


def run(data: Path, out: Path, steps: int) -> Path:
    """Train some steps and return the folder of the run."""
    settings = {"recipe": "scratch_small", "model": "fishnet_tiny", "data": str(data), "out": str(out)}
    train("detection", **settings, max_steps=steps, epochs=20, log_every=1, validate_every=20, device="cpu")
    return out


def losses(data: Path, out: Path, kind: str, threads: int) -> list[float]:
    """Return the losses of a run with one kind of RoIAlign."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with clocked(kind):
            return series(run(data, out, STEPS), "loss", "train")
    finally:
        torch.set_num_threads(before)


def apart(one: list[float], other: list[float]) -> float:
    """Return the largest relative difference of two lists of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with clocked(None) as seconds:
            run(arguments.data, folder / "times", arguments.steps)
        with compared() as differences:
            run(arguments.data, folder / "both", STEPS)
        plain, ours = (losses(arguments.data, folder / kind, kind, threads) for kind in KINDS)
        alone = losses(arguments.data, folder / "one", KINDS[0], 1)
    medians = {kind: statistics.median(values[WARM_UP // 2 :]) for kind, values in seconds.items()}
    ratio, difference = medians[KINDS[0]] / medians["own"], max(differences)
    table = []
    for kind, values in seconds.items():
        quarters = statistics.quantiles(values[WARM_UP // 2 :], n=4)
        spread = f"{quarters[0]:.2f} to {quarters[2]:.2f}"
        table.append({"RoIAlign": kind, "seconds per step": f"{medians[kind]:.2f}", "quartiles": spread})
    record(
        "41_detection_step",
        "Mask R-CNN step of fishnet_tiny, recipe scratch_small on Penn-Fudan",
        ">= 1.25 times as fast as with torchvision's RoIAlign, equal losses",
        f"{ratio:.2f} times; largest relative difference of the loss of a step, over {STEPS} steps {difference:.1e}",
        ratio >= 1.25 and difference < 1e-3,
        table,
        note=f"{threads} threads; forward, backward and optimizer, without loading; steps alternate. Losses from the "
        f"same weights and samples; separate runs differ by up to {apart(ours, plain):.1e} after {STEPS} steps, those "
        f"of torchvision's on {threads} threads and one by {apart(alone, plain):.1e}",
    )


if __name__ == "__main__":
    main()
