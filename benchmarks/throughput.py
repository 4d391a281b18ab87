"""Eager throughput of fishnet150 against pytorchcv's, both in fp32, batch 8 at 224x224, on 2 threads.

Ours runs channels-last, as every command of this library runs it; pytorchcv's in its default layout. They take turns on
the same images within one run, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from record import record
from torch import Tensor, nn

import fishnet

BATCH, SIZE, THREADS = 8, 224, 2


def seconds(model: nn.Module, images: Tensor) -> float:
    """Return the time of one forward pass."""
    begin = time.perf_counter()
    model(images)
    return time.perf_counter() - begin


def main() -> None:
    """Measure both in turns and record the median of the ratios of neighboring passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    from pytorchcv.model_provider import get_model

    torch.set_num_threads(THREADS)
    theirs = get_model("fishnet150").eval()
    ours = fishnet.create_model("fishnet150").eval().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images_last = images.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {"pytorchcv": [], "fishnet": []}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            pair = {"pytorchcv": seconds(theirs, images), "fishnet": seconds(ours, images_last)}
            for name, taken in pair.items():
                times[name] += [taken] if turn else []  # the first turn warms up
    ratio = statistics.median(t / o for t, o in zip(times["pytorchcv"], times["fishnet"], strict=True))
    record(
        "11_throughput",
        "eager throughput of fishnet150 against pytorchcv's, batch 8, fp32, 2 threads",
        ">= 1.25x",
        f"{ratio:.2f}x",
        ratio >= 1.25,
        [
            {
                "model": name,
                "median images per second": round(BATCH / statistics.median(taken), 2),
                "fastest": round(BATCH / min(taken), 2),
            }
            for name, taken in times.items()
        ],
        "The ratio is the median over neighboring passes; ours in channels-last memory, pytorchcv's in its default.",
    )


if __name__ == "__main__":
    main()
