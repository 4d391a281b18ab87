"""CIFAR-10 from scratch with the recipe of that name: accuracy and time.

python benchmarks/cifar10.py DATA [--model fishnet_nano] [--out runs/cifar10] [-- more options of fishnet train]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from record import record
from runs import fishnet, parse

TARGETS = {"fishnet_nano": (0.85, 30.0), "fishnet_small": (0.94, None)}


def main() -> None:
    """Train through the command line, then record what evaluation says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="fishnet_nano")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    arguments, more = parse(parser)
    common = ["--data", arguments.data, "--model", arguments.model, "--out", arguments.out]
    minutes = fishnet("train", "classification", "--recipe", "cifar10", "--overwrite", *common, *more)
    report = arguments.out / "evaluation.json"
    fishnet("evaluate", arguments.out, "--data", arguments.data, "--json", report)
    top1 = json.loads(report.read_text("utf-8"))["metrics"]["top1"]
    accuracy, limit = TARGETS.get(arguments.model, (None, None))
    target = (
        "none" if accuracy is None else f">= {accuracy:.0%} top-1" + (f" within {limit:.0f} minutes" if limit else "")
    )
    met = None if accuracy is None else top1 >= accuracy and (limit is None or minutes <= limit)
    record(
        f"07_cifar10_{arguments.model}",
        f"{arguments.model} on CIFAR-10 (50,000 photos, JPEG quality 75), recipe cifar10, from scratch",
        target,
        f"{top1:.2%} top-1 in {minutes:.1f} minutes, start-up and validation included",
        met,
    )


if __name__ == "__main__":
    main()
