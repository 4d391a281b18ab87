"""Fine-tuning against training from scratch: three breeds of pets, 300 photos, three seeds each.

python benchmarks/finetune.py DATA --weights RUN [--out runs/finetune] [--seeds 3] [-- more options of fishnet train]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from record import record
from runs import fishnet, last, parse, series

COMMON = ["--recipe", "finetune", "--model", "fishnet_nano", "--model-option", "stem_stride=2"]
# Twice the size of the photos that the weights come from; photos of pets hold more than their pet.
COMMON += ["--size", "64", "--epochs", "40", "--workers", "1", "--cache"]
# Low rates for early layers protect weights; without any to protect they would only slow training down.
SCRATCH = ["--optim.layer-decay", "null"]


def main() -> None:
    """Train both ways with every seed and record means and deviations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments, more = parse(parser)
    begin = time.perf_counter()
    scores: dict[str, list[float]] = {"fine-tuned": [], "from scratch": []}
    table = []
    for seed in range(arguments.seeds):
        for way, options in (("fine-tuned", ["--weights", str(arguments.weights)]), ("from scratch", SCRATCH)):
            out = arguments.out / f"{way.replace(' ', '_')}_{seed}"
            options = [*COMMON, *options, "--seed", str(seed), "--out", str(out), *more]
            fishnet("train", "classification", "--data", arguments.data, "--overwrite", *options)
            scores[way].append(last(out, "top1"))
            table.append(
                {
                    "way": way,
                    "seed": seed,
                    "top-1, last epoch": f"{last(out, 'top1'):.4f}",
                    "best epoch": f"{max(series(out, 'top1')):.4f}",
                }
            )
    means = {way: statistics.mean(values) for way, values in scores.items()}
    deviation = max(statistics.stdev(values) for values in scores.values())
    lead = means["fine-tuned"] - means["from scratch"]
    record(
        "10_finetune",
        "fine-tuning the CIFAR-10 nano to pets3 (3 breeds, 300 photos) against the same from scratch",
        "ahead by more than 2 standard deviations over 3 seeds",
        f"{means['fine-tuned']:.3f} against {means['from scratch']:.3f}: ahead by {lead:.3f}, "
        f"{lead / deviation:.1f} standard deviations (the larger of the two, {deviation:.3f})",
        lead > 2 * deviation,
        table,
        note=f"options: {' '.join([*COMMON, *more])}; from scratch also {' '.join(SCRATCH)}; "
        f"{(time.perf_counter() - begin) / 60:.0f} minutes in all",
    )


if __name__ == "__main__":
    main()
