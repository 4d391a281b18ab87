"""Loading and augmenting for Mask R-CNN on COCO: how long training waits for data, and what an image costs.

python benchmarks/detection_loading.py COCO [--epochs 1] [-- more options of fishnet train]

COCO is the embedded set (`unpack.py DEST coco`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from record import record
from runs import fishnet, parse, series

from fishnet.metrics import MetricsFile
from fishnet.runs import RunFolder
from fishnet.settings import build_config, read_settings
from fishnet.tasks.detection.options import DetectionConfig
from fishnet.tasks.detection.training import DetectionTraining

OPTIONS = ["--recipe", "scratch_small", "--model", "fishnet_tiny", "--workers", "2"]
AUGMENTATIONS: dict[str, list[str]] = {
    "recipe scratch_small": [],
    "with mosaic and copy-paste": ["--augment.mosaic", "0.5", "--augment.copy-paste", "0.5"],
}
IMAGES = 200


def waiting(out: Path) -> tuple[float, float]:
    """Return the share of training that waited for data, and seconds per step, over whole epochs."""
    rows = MetricsFile(RunFolder(out).timing_csv).read()
    values = {name: [float(r["value"]) for r in rows if r["name"] == name and r["split"] == "train"]
              for name in ("seconds", "data_wait_share")}  # fmt: skip
    seconds = sum(values["seconds"])
    steps = max(int(r["step"]) for r in rows)
    waited = sum(s * w for s, w in zip(values["seconds"], values["data_wait_share"], strict=True))
    return waited / seconds, seconds / steps


def per_image(out: Path) -> float:
    """Return the milliseconds that one image takes on one core, decoded and augmented as in the run."""
    settings = build_config(DetectionConfig, read_settings(RunFolder(out).config_yaml, DetectionConfig), str(out))
    data = DetectionTraining(settings).train_data
    torch.set_num_threads(1)
    for index in range(20):  # what is imported and allocated once
        data[(0, index % len(data))]
    times = []
    for index in range(IMAGES):
        begin = time.perf_counter()
        data[(1, index % len(data))]
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.mean(times)


def main() -> None:
    """Train a little with each augmentation, record waiting and cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    arguments, more = parse(parser)
    table, shares, costs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in AUGMENTATIONS.items():
            out = Path(folder) / str(len(table))
            options = [*OPTIONS, "--epochs", str(arguments.epochs), *changes, *more]
            fishnet("train", "detection", "--data", arguments.data, "--out", out, *options)
            assert series(out, "loss", "train"), "the run logged no loss"
            share, step = waiting(out)
            shares.append(share)
            costs.append(per_image(out))
            table.append(
                {
                    "augmentation": name,
                    "waiting": f"{share:.1%} of a step",
                    "a step": f"{step:.2f} s",
                    "an image on one core": f"{costs[-1]:.1f} ms",
                }
            )
    record(
        "26_loading",
        "loading and augmenting COCO for Mask R-CNN on fishnet_tiny, 2 workers",
        "waiting <= 5 % of the time of a step",
        f"{shares[0]:.1%} of a step, {costs[0]:.1f} ms per image and core",
        max(shares) <= 0.05,
        table,
        note=f"options: {' '.join([*OPTIONS, *more])}",
    )


if __name__ == "__main__":
    main()
