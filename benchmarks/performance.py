"""Speed and memory of fishnet150, and of networks of its accuracy, by `fishnet bench`.

python benchmarks/performance.py WHAT... [--calibration PHOTOS] [--rounds 10]

WHAT is any of those below, or `all`. Each writes all measurements to docs/results/performance/WHAT.json, from which
docs/make_performance.py makes docs/performance.md, and a summary in docs/results. PHOTOS is a folder of photos for
int8, such as pets3/train; without it the rows in int8 are left out. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import RESULTS, record

from fishnet.commands.bench import bench
from fishnet.models.precision import cpu_flags, has_bf16

OURS, THEIRS = "fishnet150", "pytorchcv:fishnet150@eager/fp32"
PEERS = ("resnet101", "resnet152", "densenet161", "dla102", "hrnet_w18")
EXPORTED = ("openvino", "exported")
OFFERED = ("channels_last", "fused", "exported")
"""What training, `fishnet predict` and exported networks run; openvino is the conversion of the untouched network."""
Document = dict[str, Any]
Verdict = tuple[str, bool | None]
"""What was measured, in words, and whether it reaches the target."""


def rows_of(found: Document, **wanted: object) -> list[Document]:
    """Return the measured rows with some values."""
    return [
        row
        for row in found["rows"]
        if "seconds" in row
        and all(row[name] in (value if isinstance(value, tuple) else (value,)) for name, value in wanted.items())
    ]


def best(rows: list[Document], value: str = "images_per_second") -> Document | None:
    """Return the row with the largest value."""
    return max((row for row in rows if row.get(value) is not None), key=lambda row: row[value], default=None)


def speed_ratio(row: Document, other: Document) -> float:
    """Return how many times as fast one row is as another: the median over the rounds."""
    pairs = zip(row["turn_seconds"], other["turn_seconds"], strict=True)
    return statistics.median(theirs / own for own, theirs in pairs)


def verdict_paths(found: Document) -> Verdict:
    """Compare the best path in every precision with pytorchcv, and with the plain conversion."""
    least: dict[int, dict[str, float]] = {1: {}, 8: {}}
    if has_bf16():
        least = {1: {"fp32": 2.5, "bf16": 5.0, "int8": 7.5}, 8: {"fp32": 2.1, "bf16": 4.4, "int8": 8.0}}
    elif {"avx512_vnni", "avx_vnni"} & cpu_flags():
        least = {1: {"fp32": 2.1, "int8": 6.0}, 8: {"fp32": 1.95, "int8": 6.0}}
    words, met = [], []
    for batch, plain_least in ((1, 1.1), (8, 1.05)):
        for precision in ("fp32", "bf16", "int8"):
            row = best(rows_of(found, label=OURS, batch=batch, precision=precision, runtime=OFFERED), "ratio")
            plain = best(rows_of(found, label=OURS, batch=batch, precision=precision, runtime="openvino"), "ratio")
            if row is None or plain is None:
                continue
            over = speed_ratio(row, plain)
            words.append(
                f"batch {batch} {precision} {row['ratio']:.2f}x ({row['runtime']}; {over:.2f}x plain OpenVINO)"
            )
            met += [over >= plain_least, row["ratio"] >= least[batch].get(precision, 0)]
    return "; ".join(words), all(met) if met else None


def verdict_eager(found: Document) -> Verdict:
    """Compare PyTorch after `fuse` with pytorchcv."""
    fast = {batch: best(rows_of(found, label=OURS, batch=batch, runtime="fused"), "ratio") for batch in (1, 8)}
    words = [f"batch {batch} {row['ratio']:.2f}x" for batch, row in fast.items() if row]
    met = all(row is not None and row["ratio"] >= {1: 1.6, 8: 1.5}[batch] for batch, row in fast.items())
    return ", ".join(words), met


def verdict_peers(found: Document) -> Verdict:
    """Compare the best path of every network at the one precision of a run."""
    words, ahead = [], {}
    for batch in sorted({row["batch"] for row in found["rows"]}):
        mine = best(rows_of(found, label=OURS, batch=batch, runtime=OFFERED))
        for peer in PEERS:
            row = best(rows_of(found, label=peer, batch=batch))
            if mine and row:
                ratio = speed_ratio(mine, row)
                ahead[peer] = min(ratio, ahead.get(peer, ratio))
                words.append(f"{peer} {ratio:.2f}x (batch {batch}, {row['runtime']})")
    wanted = PEERS[:1] if found["rows"][0]["precision"] == "int8" else PEERS[:4]
    return f"speed of {OURS} divided by that of " + ", ".join(words), all(ahead.get(peer, 0) > 1 for peer in wanted)


def verdict_training(found: Document) -> Verdict:
    """Compare training steps with those of pytorchcv in fp32."""
    rows = {p: best(rows_of(found, label=OURS, precision=p), "ratio") for p in ("fp32", "bf16")}
    words = [
        f"{p} {row['ratio']:.2f}x, {row['memory'] / 1e9:.2f} GB ({row['runtime']})" for p, row in rows.items() if row
    ]
    row, least = (rows["bf16"], 2.5) if has_bf16() else (rows["fp32"], 1.4)
    return "; ".join(words), row is not None and row["ratio"] >= least


def verdict_peak(found: Document) -> Verdict:
    """Return the largest share of the measured peak in fp32 and int8."""
    words, met = [], []
    for precision, least in (("fp32", 0.65), ("int8", 0.5)):
        row = best(rows_of(found, label=OURS, precision=precision), "share_of_peak")
        if row:
            turn = 100 * row["share_of_turn_peak"]
            where = f"{row['runtime']}, batch {row['batch']}; {turn:.0f} % of the fastest shape in the same turns"
            words.append(f"{precision} {100 * row['share_of_peak']:.0f} % ({where})")
            met.append(row["share_of_peak"] >= least)
    return ", ".join(words), all(met) if met else None


def verdict_sweep(found: Document) -> Verdict:
    """Return the exponents, and whether that of the fastest path is at most 1.1."""
    fastest = best(rows_of(found, batch=found["rows"][0]["batch"], size=found["rows"][0]["size"]))
    words = [
        f"{fit['runtime']} time {fit['time']['exponent']:.2f}, memory {fit['memory']['exponent']:.2f}"
        for fit in found["fits"]
        if fit["time"] and fit["memory"]
    ]
    mine = [fit for fit in found["fits"] if fastest and fit["runtime"] == fastest["runtime"] and fit["time"]]
    return "; ".join(words), bool(mine) and mine[0]["time"]["exponent"] <= 1.1


@dataclass(frozen=True)
class Measurement:
    """One call of `fishnet bench`, and the results that it gives."""

    title: str
    options: Document
    shows: dict[str, tuple[str, Callable[[Document], Verdict]]]
    """Result -> target in words, and the function that compares with it."""


FLOATS = ["fp32", "bf16"]
PATHS = [THEIRS, f"{OURS}@channels_last/fp32", f"{OURS}@fused/fp32", *(f"{OURS}@{name}" for name in EXPORTED)]
MEASUREMENTS = {
    "paths": Measurement(
        "fishnet150 in all runtimes against pytorchcv's in PyTorch's default layout",
        {"models": PATHS, "batch_size": [1, 8], "precision": [*FLOATS, "int8"], "ratio_to": THEIRS},
        {
            "40_paths": (
                "CPUs with bf16: 2.5x fp32, 5x bf16, 7.5x int8 at batch 1, 2.1x, 4.4x, 8x at 8; with VNNI only: 2.1x, "
                "6x int8 at 1, 1.95x, 6x at 8; 1.1x the plain conversion at 1, 1.05x at 8",
                verdict_paths,
            ),
            "41_eager": (">= 1.6x at batch 1, >= 1.5x at batch 8", verdict_eager),
            "42_peak": (">= 65 % fp32, >= 50 % int8", verdict_peak),
        },
    ),
    "peers_fp32": Measurement(
        "fishnet150 against networks of its accuracy, each in its best path, fp32",
        {"models": [OURS, *PEERS], "batch_size": [1, 8], "runtime": ["fused", *EXPORTED]},
        {"43_peers_fp32": ("faster than resnet101, resnet152, densenet161, dla102", verdict_peers)},
    ),
    "peers_int8": Measurement(
        "fishnet150 against networks of its accuracy, each in its best path, int8",
        {"models": [OURS, *PEERS], "batch_size": [1, 8], "runtime": [*EXPORTED], "precision": ["int8"]},
        {"44_peers_int8": ("faster than resnet101", verdict_peers)},
    ),
    "training": Measurement(
        "training steps of fishnet150, batch 16, against pytorchcv's in fp32 and PyTorch's default layout",
        {"models": [THEIRS, f"{OURS}@channels_last"], "train": True, "precision": FLOATS, "ratio_to": THEIRS},
        {"45_training": (">= 2.5x in bf16; without bf16 instructions >= 1.4x in fp32", verdict_training)},
    ),
    "pixels": Measurement(
        "time and memory of fishnet150 against the number of pixels",
        {"models": [OURS], "sweep": "size", "runtime": ["fused", *EXPORTED], "peak": False},
        {"46_pixels": ("time: an exponent <= 1.1 for the best path", verdict_sweep)},
    ),
    "batch": Measurement(
        "time and memory of fishnet150 against the batch",
        {"models": [OURS], "sweep": "batch", "runtime": ["fused", *EXPORTED], "peak": False},
        {"47_batch": ("time: an exponent <= 1.1 for the best path", verdict_sweep)},
    ),
}


def measure(what: str, calibration: Path | None, rounds: int) -> None:
    """Measure, write everything, record what it shows."""
    one, options = MEASUREMENTS[what], dict(MEASUREMENTS[what].options)
    if "int8" in options.get("precision", []):
        if calibration is None:
            options["precision"] = [name for name in options["precision"] if name != "int8"]
        else:
            options["calibration"] = str(calibration)
    if options.get("precision") == []:
        print(f"{what} needs --calibration PHOTOS", file=sys.stderr)
        return
    found = bench(**options, rounds=rounds)
    document = found.document
    document["environment"].pop("command", None)
    file = RESULTS / "performance" / f"{what}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"title": one.title, "command": command(options, rounds), "bench": document}, indent=1) + "\n",
        "utf-8",
    )
    if found.exit_code == 130:
        raise KeyboardInterrupt
    for name, (target, verdict) in one.shows.items():
        measured, met = verdict(document)
        record(name, one.title, target, measured or "nothing", met, note="every row: docs/performance.md")


def command(options: Document, rounds: int) -> str:
    """Return the call of `fishnet bench` as it is typed."""
    words = ["fishnet", "bench", *options["models"], "--rounds", str(rounds)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "calibration":
            words += [flag, "PHOTOS"]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        elif name != "models":
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def main() -> None:
    """Measure what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=(*MEASUREMENTS, "all"))
    parser.add_argument("--calibration", type=Path, help="folder of photos for int8")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    for what in MEASUREMENTS if "all" in arguments.what else arguments.what:
        measure(what, arguments.calibration, arguments.rounds)


if __name__ == "__main__":
    main()
