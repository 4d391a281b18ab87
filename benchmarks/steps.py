"""Losses of 20 steps from one seed, to show that a change of the code's structure changes no number.

python benchmarks/steps.py record DATA FILE      # before the change; DATA holds the small pets3 and pennfudan
python benchmarks/steps.py compare DATA FILE     # after it, on the same machine

DATA is what `unpack.py DATA pets3 pennfudan --mini` makes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from record import record
from runs import fishnet, series

STEPS = 20
COMMON = ["--model", "fishnet_nano", "--seed", "3", "--workers", "1", "--log-every", "1", "--device", "cpu"]
CLASSIFICATION = [
    *("--recipe", "cifar10", "--size", "64", "--batch-size", "16", "--accumulate", "2", "--ema", "0.9"),
    *("--epochs", "5", "--validate-every", "5", "--no-cache", "--model-option", "drop_path_rate=0.1"),
    *("--augment.mixup", "0.4", "--augment.cutmix", "1.0", "--drop-rate", "0.1"),
]
DETECTION = [
    *("--recipe", "scratch_small", "--size", "128", "--longest", "192", "--batch-size", "4", "--epochs", "3"),
    *("--validate-every", "3", "--heads.proposals", "100", "--ema", "0.9"),
]
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "classification with mixup, EMA and accumulation": ("classification", "pets3", CLASSIFICATION),
    "Mask R-CNN": ("detection", "pennfudan", DETECTION),
    "FCOS": ("detection", "pennfudan", [*DETECTION, "--detector", "fcos"]),
}


def losses(data: Path) -> dict[str, list[float]]:
    """Return the losses of 20 steps of every run."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (task, source, options)) in enumerate(RUNS.items()):
            out = Path(folder) / str(number)
            where = ["--data", data / source, "--out", out, "--max-steps", str(STEPS)]
            fishnet("train", task, *where, *COMMON, *options)
            found[name] = series(out, "loss", "train")
            assert len(found[name]) == STEPS, f"{name}: {len(found[name])} steps"
    return found


def main() -> None:
    """Write the losses, or compare them with those that were written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("data", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    found = losses(arguments.data)
    if arguments.action == "record":
        arguments.file.write_text(json.dumps(found, indent=1), "utf-8")
        return
    before = json.loads(arguments.file.read_text("utf-8"))
    table = [
        {
            "run": name,
            "first loss": f"{values[0]:.6f}",
            "last loss": f"{values[-1]:.6f}",
            "largest difference": f"{max(abs(a - b) for a, b in zip(values, before[name], strict=True)):.1e}",
        }
        for name, values in found.items()
    ]
    equal = found == before
    record(
        "30_steps",
        f"Losses of {STEPS} steps before and after the code moved: one network for both tasks, a room per task",
        "equal",
        "equal to the last bit" if equal else "they differ",
        equal,
        table,
    )


if __name__ == "__main__":
    main()
