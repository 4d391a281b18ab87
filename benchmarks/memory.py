"""Memory against time of the modes of `--memory`: training steps of fishnet150 on random images.

python benchmarks/memory.py [--batch 16] [--size 224] [--rounds 3] [--threads 2] [--model fishnet150]

Every mode runs in a process of its own, and they take turns. Memory is measured in two ways. `kept`: bytes of the
tensors that the forward pass leaves for the backward pass, without parameters (hooks on saved tensors). `peak`: how far
the resident memory of the process rises in a step above what it was before (network, gradients, optimizer), which
includes what stages recompute and the gradients of maps. The targets are held against the peak.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from record import record
from rounds import Worker, machine, ratio, seconds_of, serve, take_turns
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import fishnet
from fishnet.config import TrainConfig
from fishnet.models.config import Memory
from fishnet.models.precision import autocast, guard_bf16_on_cpu
from fishnet.models.stages import set_memory
from fishnet.training.allocator import allocation_for
from fishnet.training.optimizer import build_optimizer
from fishnet.training.trainer import has_bf16

MODES: tuple[Memory, ...] = get_args(Memory)
TARGETS = {"balanced": 0.7, "saver": 0.35}
LEAST_SPEED = 0.6
"""Speed of `saver` as a share of that of `fast`."""
STATUS = Path("/proc/self/status")


def resident(name: str) -> int:
    """Return the resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak."""
    line = next(line for line in STATUS.read_text("utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def kept_bytes(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Return the bytes that a forward pass keeps, apart from the storages at the addresses `own`."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or the next one could lie in the same place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def work(mode: Memory, precision: str, name: str, batch: int, size: int) -> None:
    """Serve the steps of one mode."""
    torch.manual_seed(0)
    model = fishnet.create_model(name, zero_init_last=False).train().to(memory_format=torch.channels_last)
    if precision == "bf16":
        guard_bf16_on_cpu(model)
    set_memory(model, mode)
    optimizer = build_optimizer(model, TrainConfig(lr=1e-4))
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000

    def forward() -> Tensor:
        with autocast(torch.device("cpu"), precision):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    kept = kept_bytes(forward, {p.untyped_storage().data_ptr() for p in model.parameters()})

    library = ctypes.CDLL(None)

    def step() -> float:
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.item()

    def turn() -> dict[str, float]:
        library.malloc_trim(0)  # freed memory goes back to the system, and does not count
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts anew
        before = resident("VmRSS")
        step()
        peak, begin = resident("VmHWM") - before, time.perf_counter()
        loss = step()  # with memory that the process has, as usual
        return {"seconds": time.perf_counter() - begin, "peak": peak, "kept": kept, "loss": loss}

    with allocation_for(mode):
        serve(turn)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 16), ("size", 224), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="fishnet150")
    parser.add_argument("--work", nargs=2, metavar=("MODE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        mode, precision = arguments.work
        work(mode, precision, arguments.model, arguments.batch, arguments.size)
        return
    common = ["--batch", arguments.batch, "--size", arguments.size, "--threads", arguments.threads]
    common += ["--model", arguments.model]
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
        workers = {mode: Worker(__file__, *map(str, common), "--work", mode, precision) for mode in MODES}
        figures[precision] = take_turns(workers, arguments.rounds)
        for worker in workers.values():
            worker.stop()
    report(figures, f"{arguments.model}, batch {arguments.batch} at {arguments.size} pixels", arguments.rounds)


def report(figures: dict[str, dict[str, list[dict[str, float]]]], what: str, rounds: int) -> None:
    """Record the figures of all precisions and modes."""
    table, text, met = [], [], True
    for precision, modes in figures.items():
        seconds = seconds_of(modes)
        median = {m: {k: statistics.median(t[k] for t in turns) for k in turns[0]} for m, turns in modes.items()}
        for mode, found in median.items():
            share = found["peak"] / median["fast"]["peak"]
            speed = ratio(seconds["fast"], seconds[mode])
            if mode in TARGETS:
                text.append(f"{precision} {mode} {share:.2f}x of the peak of fast at {speed.median:.2f}x of its speed")
            met &= share <= TARGETS.get(mode, 1) and (mode != "saver" or speed.median >= LEAST_SPEED)
            table.append(
                {
                    "precision": precision,
                    "mode": mode,
                    "peak MiB": round(found["peak"] / 2**20),
                    "of fast": f"{share:.2f}",
                    "kept MiB": round(found["kept"] / 2**20),
                    "kept, of fast": f"{found['kept'] / median['fast']['kept']:.2f}",
                    "seconds per step": f"{found['seconds']:.2f}",
                    "speed of fast": str(speed),
                    "equal loss": modes[mode][-1]["loss"] == modes["fast"][-1]["loss"],
                }
            )
            met &= bool(table[-1]["equal loss"])
    record(
        "43_memory",
        f"memory of training steps against time: {what}",
        f"balanced <= {TARGETS['balanced']}x, saver <= {TARGETS['saver']}x at >= {LEAST_SPEED}x of the speed of fast",
        "; ".join(text),
        met,
        table,
        f"{machine()}; medians of {rounds} rounds in turns, a process each; peak: rise of the resident memory in a "
        "step; kept: bytes of tensors that the forward pass leaves; equal loss: to the bit, after all steps",
    )


if __name__ == "__main__":
    main()
