"""Training step of fishnet150 against that of pytorchcv's: forward, backward and SGD, on random images.

python benchmarks/train_step.py [--batch 16] [--rounds 5] [--threads 2] [--processor-time]

Every candidate runs in a process of its own, and they take turns. The peer is pytorchcv's network as it comes, in fp32
and the default memory order. Ours runs as `fishnet train` runs it: channels-last, freed memory kept, in fp32, and under
bf16 autocast where the processor has bf16 instructions. Conversions of the peer (channels-last, bf16) are rows too, to
tell our part from PyTorch's.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record
from rounds import Worker, machine, ratio, rows, seconds_of, serve, take_turns
from torch import nn

import fishnet
from fishnet.config import TrainConfig
from fishnet.models.checkpoints.weights import convert_state
from fishnet.models.precision import autocast, guard_bf16_on_cpu
from fishnet.training.allocator import allocation_for
from fishnet.training.optimizer import build_optimizer
from fishnet.training.trainer import has_bf16

PEER, OURS = "pytorchcv", "fishnet"
SIZE = 224
"""The only size that pytorchcv's network takes."""
FP32_TARGET, BF16_TARGET = 1.4, 2.5


def networks() -> dict[str, nn.Module]:
    """Return both networks with the same weights."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    peer, ours = get_model("fishnet150"), fishnet.create_model("fishnet150")
    ours.load_state_dict(convert_state(peer.state_dict()))
    return {PEER: peer, OURS: ours}


def step_of(model: nn.Module, batch: int, last: bool, precision: str) -> Callable[[], float]:
    """Return the training step of a network; it returns the loss."""
    model = model.train()
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    if precision == "bf16":
        guard_bf16_on_cpu(model)
    if last:
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    optimizer = build_optimizer(model, TrainConfig(lr=1e-4))
    labels = torch.arange(batch) % 1000

    def step() -> float:
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), precision):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def work(candidate: str, batch: int, clock: Callable[[], float]) -> None:
    """Serve the turns of one candidate, such as "fishnet last bf16"."""
    name, order, precision = candidate.split()
    step = step_of(networks()[name], batch, order == "last", precision)

    def turn() -> dict[str, float]:
        begin = clock()
        loss = step()
        return {"seconds": clock() - begin, "loss": loss}

    with allocation_for("fast", name == OURS):
        serve(turn)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that others use at the same time")
    parser.add_argument("--work", metavar="CANDIDATE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        work(arguments.work, arguments.batch, time.process_time if arguments.processor_time else time.perf_counter)
        return
    candidates = {f"{PEER} fp32": f"{PEER} default fp32", f"{PEER} fp32, channels-last": f"{PEER} last fp32"}
    candidates[f"{OURS} fp32"] = f"{OURS} last fp32"
    if has_bf16():
        candidates[f"{PEER} bf16, channels-last"] = f"{PEER} last bf16"
        candidates[f"{OURS} bf16"] = f"{OURS} last bf16"
    common = ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    common += ["--processor-time"] if arguments.processor_time else []
    workers = {name: Worker(__file__, *common, "--work", candidate) for name, candidate in candidates.items()}
    figures = take_turns(workers, arguments.rounds)
    for worker in workers.values():
        worker.stop()
    report(figures, arguments.batch, f"{arguments.rounds} rounds{', processor time' * arguments.processor_time}")


def report(figures: dict[str, list[dict[str, float]]], batch: int, how: str) -> None:
    """Record the figures of all candidates."""
    seconds = seconds_of(figures)
    first = {name: turns[0]["loss"] for name, turns in figures.items()}
    fp32 = ratio(seconds[f"{PEER} fp32"], seconds[f"{OURS} fp32"])
    measured, met = f"{fp32} in fp32", fp32.median >= FP32_TARGET
    if f"{OURS} bf16" in seconds:
        bf16 = ratio(seconds[f"{PEER} fp32"], seconds[f"{OURS} bf16"])
        measured, met = f"{bf16} in bf16; {measured}", bf16.median >= BF16_TARGET
    else:
        measured += "; bf16 is not measurable: the processor has no bf16 instructions"
    table = [row | {"loss": f"{first[row['candidate']]:.4f}"} for row in rows(seconds, f"{PEER} fp32")]
    record(
        "42_train_step",
        f"training step of fishnet150 against pytorchcv's in fp32, batch {batch} at {SIZE} pixels",
        f">= {BF16_TARGET}x in bf16; >= {FP32_TARGET}x in fp32 on processors without bf16",
        measured,
        met,
        table,
        f"{machine()}; {how} in turns, a process each; loss of the second step, from the same weights and images",
    )


if __name__ == "__main__":
    main()
