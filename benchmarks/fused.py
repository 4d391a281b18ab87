"""Inference of fishnet150 in PyTorch itself, fused and channels-last, against pytorchcv's, both in fp32.

python benchmarks/fused.py [--batches 1 8] [--rounds 15] [--threads 2]

The peer is pytorchcv's network as it comes, in the default memory order; ours is what `fishnet predict` runs. Both have
the same weights and images and take turns in one process. The network before `fuse`, and the peer in channels-last
memory, are rows too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from record import record
from rounds import machine, ratio, rows, seconds_of, take_turns
from torch import Tensor, nn
from train_step import OURS, PEER, SIZE, networks

from fishnet.deploy.fuse import fuse

TARGETS = {1: 1.6, 8: 1.5}
"""Times as fast as the peer, by batch."""


def pass_of(model: nn.Module, images: Tensor) -> Callable[[], dict[str, float]]:
    """Return a forward pass that tells its time."""

    def turn() -> dict[str, float]:
        begin = time.perf_counter()
        model(images)
        return {"seconds": time.perf_counter() - begin}

    return turn


@torch.inference_mode()
def measured(batch: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of all candidates, and the largest difference of the logits relative to their largest."""
    nets = {name: model.eval() for name, model in networks().items()}
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    last = images.contiguous(memory_format=torch.channels_last)
    expected = nets[PEER](images)
    plain = nets[OURS].to(memory_format=torch.channels_last)
    fused = fuse(plain, eager=True)
    difference = float((fused(last) - expected).abs().max() / expected.abs().max())
    passes = {
        PEER: pass_of(nets[PEER], images),
        f"{OURS}, channels-last": pass_of(plain, last),
        f"{OURS}, fused, channels-last": pass_of(fused, last),
        f"{PEER}, channels-last": pass_of(deepcopy(nets[PEER]).to(memory_format=torch.channels_last), last),
    }
    return seconds_of(take_turns(passes, rounds)), difference


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    table, found, worst = [], [], 0.0
    for batch in arguments.batches:
        seconds, difference = measured(batch, arguments.rounds)
        worst = max(worst, difference)
        found.append((batch, ratio(seconds[PEER], seconds[f"{OURS}, fused, channels-last"])))
        table += [{"batch": batch, **row} for row in rows(seconds, PEER)]
    record(
        "44_fused",
        "PyTorch eager after fuse, channels-last, fp32, against pytorchcv's fishnet150",
        ", ".join(f">= {target}x at batch {batch}" for batch, target in TARGETS.items()),
        ", ".join(f"{value} at batch {batch}" for batch, value in found),
        all(value.median >= TARGETS.get(batch, 1) for batch, value in found) and worst <= 1e-4,
        table,
        f"{machine()}; {arguments.rounds} rounds in turns; largest difference of the logits {worst:.1e} of the largest",
    )


if __name__ == "__main__":
    main()
