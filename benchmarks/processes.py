"""Two processes against one with the same global batch: losses of 20 steps from weights trained before.

python benchmarks/processes.py DATA --weights RUN [--lr 0.01]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

from fishnet.metrics import MetricsFile


def losses(out: Path) -> list[float]:
    """Return the training losses of a run, step by step."""
    rows = MetricsFile(out / "metrics.csv").read()
    return [float(row["value"]) for row in rows if row["split"] == "train" and row["name"] == "loss"]


def main() -> None:
    """Train both ways from the same weights and record the largest relative difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--lr", default="0.01")
    arguments = parser.parse_args()
    settings = ["--recipe", "cifar10", "--data", str(arguments.data), "--weights", str(arguments.weights)]
    settings += ["--max-steps", "20", "--log-every", "1", "--norm", "frozen", "--lr", arguments.lr, "--workers", "1"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for devices in ("1", "2"):
            out = Path(folder) / devices
            command = [sys.executable, "-m", "fishnet", "train", "classification", *settings, "--devices", devices]
            subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
            found[devices] = losses(out)
    pairs = list(zip(found["1"], found["2"], strict=True))
    worst = max(abs(one - two) / abs(one) for one, two in pairs)
    record(
        "09_processes",
        f"--devices 2 on CPU against one process, same global batch, BN frozen, lr {arguments.lr}",
        "losses of 20 steps equal to 1e-4 relative",
        f"largest relative difference {worst:.1e} over {len(pairs)} steps",
        worst <= 1e-4 and len(pairs) == 20,
        [{"step": i, "one process": f"{one:.6f}", "two": f"{two:.6f}"} for i, (one, two) in enumerate(pairs, 1)],
    )


if __name__ == "__main__":
    main()
