"""Time of the demo, and what its network reaches on scenes that it was not trained on.

python benchmarks/demo.py [--out runs/demo]

Installation is not timed. Run it alone: the demo uses all cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from record import record
from runs import fishnet, last, series

MINUTES = 5
"""Time that the demo may take."""
FLOORS = {"top1": 0.85, "box_ap50": 0.70, "mask_ap50": 0.60, "miou": 0.60}
"""Metrics that it is meant to reach."""


def main() -> None:
    """Run the demo and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    minutes = fishnet("demo", "--out", arguments.out)
    run = arguments.out / "run"
    found = {name: last(run, name) for name in (*FLOORS, "pq")}
    speed = series(run, "images_per_second", "train", "timing.csv")
    record(
        "36_demo",
        "fishnet demo: scenes, training on three levels, evaluation and predictions",
        f"< {MINUTES} minutes; " + ", ".join(f"{name} {floor:.2f}" for name, floor in FLOORS.items()),
        f"{minutes:.1f} minutes; " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()),
        minutes < MINUTES and all(found[name] >= floor for name, floor in FLOORS.items()),
        [
            {"figure": name, "value": f"{value:.3f}", "floor": f"{FLOORS[name]:.2f}" if name in FLOORS else "-"}
            for name, value in found.items()
        ],
        note=f"{min(speed):.0f} to {max(speed):.0f} images/s in training, start-up included in the time",
    )


if __name__ == "__main__":
    main()
