"""CamVid (367 images to train on, 233 to test on, 11 classes) from scratch on two cores: one long run, and comparisons.

python benchmarks/camvid.py run CAMVID [--jobs 2] [--only TEXT] [train options]
python benchmarks/camvid.py tables

CAMVID is the embedded set (`unpack.py DEST camvid`). `run` trains the missing runs and adds the metrics of each
run to docs/results/runs/camvid.json, so that the tables can grow over several calls; an interrupted run is resumed. All
are scored on the test split, at the 480x360 of its label maps. `tables` writes the results from that file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from record import RESULTS, record
from runs import parse
from trials import Trial, Trials, cost_of, sizes_of

FIGURES = ("miou", "boundary_iou", "pixel_accuracy")
SIZE = (176, 240)
RUNS = Trials(RESULTS / "runs" / "camvid.json", FIGURES, "segmentation", SIZE, "test")
SEEDS = (0, 1)
COMMON = ["--recipe", "camvid", "--workers", "1"]
LONG = ("fishnet_tiny", "--model fishnet_tiny")
SHORT = ["--epochs", "8", "--validate-every", "8"]
COMPARED: dict[str, str] = {
    "fish on fishnet_tiny": "--model fishnet_tiny",
    "smp FPN on resnet18": "--model resnet18 --pixel.decoder smp:fpn",
    "smp Unet on resnet18": "--model resnet18 --pixel.decoder smp:unet",
    "fish on resnet18": "--model resnet18",
    "fish on resnet18, branches open": "--model resnet18 --model-option zero_init_last=false",
    "hypercolumn on fishnet_tiny": "--model fishnet_tiny --pixel.decoder hypercolumn",
    "fpn on fishnet_tiny": "--model fishnet_tiny --pixel.decoder fpn",
    "upernet on fishnet_tiny": "--model fishnet_tiny --pixel.decoder upernet",
    "fish on fishnet_tiny, taps body": "--model fishnet_tiny --taps body",
    "fish on fishnet_tiny, taps tail": "--model fishnet_tiny --taps tail",
}


def key(table: str, name: str, seed: int) -> str:
    """Return the name of a run in the file of all runs."""
    return f"{table}: {name}, seed {seed}"


def trials(more: list[str]) -> Iterator[Trial]:
    """Yield all runs, the most telling first."""
    name, options = LONG
    yield Trial(key("long", name, 0), [*COMMON, *options.split(), "--seed", "0", *more])
    for seed in SEEDS:
        for name, options in COMPARED.items():
            yield Trial(key("short", name, seed), [*COMMON, *SHORT, *options.split(), "--seed", str(seed), *more])


def tables() -> None:
    """Write the results."""
    done = RUNS.done()
    note = f"test split, at 480x360; options {' '.join(COMMON)}; multiply-adds at {SIZE[0]}x{SIZE[1]} pixels"
    if (found := done.get(key("long", LONG[0], 0))) is not None:
        limit = 40 if "--precision bf16" in found["options"] else 90
        row = {"network": LONG[0], **{n.replace("_", " "): f"{found[n]:.4f}" for n in FIGURES}, **sizes_of(found)}
        record(
            "32_camvid",
            "CamVid from scratch, prediction scored at full size",
            "test mIoU 0.50 within 40 minutes on a processor with bf16, 90 without",
            f"mIoU {found['miou']:.3f} in {found['minutes']:.0f} minutes",
            found["miou"] >= 0.5 and found["minutes"] <= limit,
            [{**row, **cost_of([found])}],
            note=f"{note}; options of the run: {found['options']}; published from scratch at full size: SegNet 0.464, "
            "ENet 0.513, FC-DenseNet103 0.669",
        )
    lines, means = [], {}
    for name in COMPARED:
        runs = [done[one] for seed in SEEDS if (one := key("short", name, seed)) in done]
        if not runs:
            continue
        means[name] = statistics.fmean(one["miou"] for one in runs)
        figures = {n.replace("_", " "): " / ".join(f"{one[n]:.3f}" for one in runs) for n in FIGURES}
        lines.append({"decoder and network": name, **figures, **sizes_of(runs[0]), **cost_of(runs)})
    if {"fish on fishnet_tiny", "smp FPN on resnet18"} <= means.keys():
        fish, peer = means["fish on fishnet_tiny"], means["smp FPN on resnet18"]
        record(
            "33_camvid_heads",
            "CamVid from scratch, 8 epochs: heads, networks and taps",
            "the fish head on the fish ahead of smp's FPN on resnet18",
            f"mean mIoU {fish:.3f} against {peer:.3f}",
            fish > peer,
            lines,
            note=f"{note}; options {' '.join(SHORT)}; seeds {' / '.join(map(str, SEEDS))}; two runs side by side",
        )


def main() -> None:
    """Train, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    arguments, more = parse(parser)
    if arguments.what == "tables":
        tables()
    elif arguments.data is None:
        parser.error("run needs CAMVID")
    else:
        chosen = [one for one in trials(more) if arguments.only in one.key]
        RUNS.train(chosen, arguments.data, arguments.out, None, arguments.jobs)


if __name__ == "__main__":
    main()
