"""Training step of fishnet150 against that of pytorchcv's: forward, backward and SGD, on random images.

python benchmarks/train_step.py [--batch 16] [--rounds 5] [--threads 2] [--processor-time]

Peer: pytorchcv's network as it comes, in fp32 and the default memory order. Ours runs as `fishnet train` runs it:
channels-last, in fp32, and under bf16 autocast where the processor has bf16 instructions. Both start from the same weights
and take turns. Plain conversions of the peer (channels-last, bf16) are rows too, to tell our part from PyTorch's.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record
from rounds import machine, ratio, rows, take_turns
from torch import Tensor, nn

import fishnet
from fishnet.config import TrainConfig
from fishnet.models.checkpoints.weights import convert_state
from fishnet.models.precision import autocast, guard_bf16_on_cpu
from fishnet.training.optimizer import build_optimizer
from fishnet.training.trainer import has_bf16

PEER = "pytorchcv fp32"
SIZE = 224
"""The only size that pytorchcv's network takes."""
FP32_TARGET, BF16_TARGET = 1.4, 2.5


def step_of(model: nn.Module, images: Tensor, last: bool, precision: str) -> Callable[[], float]:
    """Return the training step of a copy of a network; it returns the loss."""
    model = copy.deepcopy(model).train()
    if precision == "bf16":
        guard_bf16_on_cpu(model)
    if last:
        model, images = model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, TrainConfig(lr=1e-4))
    labels = torch.arange(len(images)) % 1000

    def step() -> float:
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), precision):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def candidates(batch: int) -> dict[str, Callable[[], float]]:
    """Return the steps by name."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    images = torch.randn(batch, 3, SIZE, SIZE)
    peer, ours = get_model("fishnet150"), fishnet.create_model("fishnet150", zero_init_last=False)
    ours.load_state_dict(convert_state(peer.state_dict()))
    found = {
        PEER: step_of(peer, images, False, "fp32"),
        "pytorchcv fp32, channels-last": step_of(peer, images, True, "fp32"),
        "fishnet fp32": step_of(ours, images, True, "fp32"),
    }
    if has_bf16():
        found["pytorchcv bf16, channels-last"] = step_of(peer, images, True, "bf16")
        found["fishnet bf16"] = step_of(ours, images, True, "bf16")
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that others use at the same time")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    steps = candidates(arguments.batch)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    seconds = take_turns(steps, arguments.rounds, clock)
    fp32 = ratio(seconds[PEER], seconds["fishnet fp32"])
    measured, met = f"{fp32} in fp32", fp32.median >= FP32_TARGET
    if "fishnet bf16" in seconds:
        bf16 = ratio(seconds[PEER], seconds["fishnet bf16"])
        measured, met = f"{bf16} in bf16; {measured}", bf16.median >= BF16_TARGET
    else:
        measured += "; bf16 is not measurable: the processor has no bf16 instructions"
    record(
        "42_train_step",
        f"training step of fishnet150 against pytorchcv's in fp32, batch {arguments.batch} at {SIZE} pixels",
        f">= {BF16_TARGET}x in bf16; >= {FP32_TARGET}x in fp32 on processors without bf16",
        measured,
        met,
        rows(seconds, PEER),
        f"{machine()}; {arguments.rounds} interleaved rounds{', processor time' if arguments.processor_time else ''}",
    )


if __name__ == "__main__":
    main()
