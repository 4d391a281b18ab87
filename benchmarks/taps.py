"""Which part of a FishNet the maps of a detector are worth taking from: head, body or tail, by the size of the objects.

python benchmarks/taps.py run COCO --weights RUN [--jobs 2] [--only TEXT] [train options]
python benchmarks/taps.py table

COCO is the embedded subset (`unpack.py DEST coco`: 343 images to train on, 206 to evaluate on), with all 80 classes
taken as one, since so few images do not teach 80. RUN is the CIFAR-10 run of fishnet_nano (benchmarks/cifar10.py), so
that head and body are trained before, as the tail is. Finished runs are kept in docs/results/runs/taps.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from record import RESULTS, record
from runs import parse
from trials import COUNTED_AT, Trial, Trials, cost_of, sizes_of

FIGURES = ("box_ap", "box_ap50", "box_ap_small", "box_ap_medium", "box_ap_large")
RUNS = Trials(RESULTS / "runs" / "taps.json", FIGURES)
TAPS = ("head", "body", "tail")
STARTS = {"CIFAR-10": "--weights {weights}", "none": "--model-option zero_init_last=true"}
"""What the trunk starts from: weights of all its parts, or none (with the zero start of residual branches)."""
SEEDS = (0, 1)
COMMON = (
    "--recipe scratch_small --workers 1 --model fishnet_nano --heads.preset tiny --detector faster_rcnn "
    "--size 256 --longest 384 --epochs 16 --validate-every 16"
)


def one_class(source: Path, folder: Path) -> Path:
    """Write a COCO folder whose objects are all of one class, with links to the images of another."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train2017", "val2017"):
        name = f"annotations/instances_{split}.json"
        content = json.loads((source / name).read_text("utf-8"))
        content["categories"] = [{"id": 1, "name": "object"}]
        content["annotations"] = [{**one, "category_id": 1} for one in content["annotations"]]
        (folder / name).write_text(json.dumps(content), "utf-8")
        link = folder / split
        if not link.exists():
            link.symlink_to((source / split).resolve(), target_is_directory=True)
    return folder


def key(start: str, taps: str, seed: int) -> str:
    """Return the name of a run in the file of all runs."""
    return f"start {start}, taps {taps}, seed {seed}"


def trials(more: list[str]) -> Iterator[Trial]:
    """Yield all runs."""
    for start, options in STARTS.items():
        for seed in SEEDS:
            for taps in TAPS:
                own = [*COMMON.split(), *options.split(), "--pyramid.taps", taps, "--seed", str(seed)]
                yield Trial(key(start, taps, seed), [*own, *more])


def table() -> None:
    """Write the result."""
    done, lines, said = RUNS.done(), [], []
    for start in STARTS:
        for taps in TAPS:
            found = [done[name] for seed in SEEDS if (name := key(start, taps, seed)) in done]
            if not found:
                continue
            figures = {n.replace("_", " "): " / ".join(f"{one[n]:.3f}" for one in found) for n in FIGURES}
            lines.append({"start": start, "taps": taps, **figures, **sizes_of(found[0]), **cost_of(found)})
            said.append(f"{taps} from {start}: box AP {statistics.fmean(one['box_ap'] for one in found):.3f}")
    record(
        "25b_taps",
        "Maps from head, body or tail of fishnet_nano, on 343 photos of COCO with one class",
        "a table by object size with both seeds, from a pretrained trunk",
        "means of the seeds: " + "; ".join(said),
        None,
        lines,
        note=f"options: {COMMON}; seeds {' / '.join(map(str, SEEDS))}; multiply-adds of trunk and neck for an image of "
        f"{COUNTED_AT[0]}x{COUNTED_AT[1]} pixels; two runs side by side on two cores, beside other work",
    )


def main() -> None:
    """Train, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, help="classification run whose trunk the detectors start from")
    parser.add_argument("--out", type=Path, default=Path("runs/taps"))
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    arguments, more = parse(parser)
    if arguments.what == "table":
        table()
    elif arguments.data is None:
        parser.error("run needs COCO")
    else:
        data = one_class(arguments.data, arguments.out / "data")
        chosen = [one for one in trials(more) if arguments.only in one.key]
        RUNS.train(chosen, data, arguments.out, arguments.weights, arguments.jobs)


if __name__ == "__main__":
    main()
