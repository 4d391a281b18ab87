"""An annotation file of 500 MB: time to the first training step, and peak memory.

python benchmarks/large_annotations.py COCO [--megabytes 510]

COCO is the embedded set (`unpack.py DEST coco`); its images and objects are repeated under new ids until the file is
large enough. Memory is that of all processes of the run together, shared pages counted once (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from runs import series

SECONDS, GIGABYTES = 90.0, 8.0
OPTIONS = ["--recipe", "scratch_small", "--model", "fishnet_nano", "--workers", "2", "--max-steps", "2"]
OPTIONS += ["--log-every", "1"]


def enlarge(source: Path, folder: Path, megabytes: int) -> tuple[Path, int, int]:
    """Write a data folder with a large training split; return it with its numbers of images and objects."""
    document = json.loads((source / "annotations" / "instances_train2017.json").read_text("utf-8"))
    of_image: dict[int, list[dict[str, Any]]] = {}
    for entry in document["annotations"]:
        of_image.setdefault(entry["image_id"], []).append(entry)
    once = len(json.dumps(document))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for _ in range(-(-megabytes * 10**6 // once)):
        for image in document["images"]:
            images.append({**image, "id": len(images) + 1})
            for entry in of_image.get(image["id"], []):
                annotations.append({**entry, "id": len(annotations) + 1, "image_id": len(images)})
    (folder / "annotations").mkdir(parents=True)
    with (folder / "annotations" / "instances_train.json").open("w", encoding="utf-8") as file:
        json.dump({**document, "images": images, "annotations": annotations}, file)
    val = source / "annotations" / "instances_val2017.json"
    (folder / "annotations" / "instances_val.json").write_bytes(val.read_bytes())
    for split in ("train", "val"):
        (folder / split).symlink_to((source / f"{split}2017").resolve())
    return folder, len(images), len(annotations)


def memory_of(process: int) -> float:
    """Return the gigabytes of a process and everything that it started, shared pages counted once."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += memory_of(int(child)) * 1e9
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e9


def watch(command: list[str], out: Path) -> tuple[float, float]:
    """Run a command; return the seconds to the first logged step, and the peak of its memory up to its end."""
    begin, first, peak = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
        if not first and (out / "metrics.csv").exists() and series(out, "loss", "train"):
            first = time.perf_counter() - begin
        with contextlib.suppress(OSError, StopIteration):  # a process may end while it is looked at
            peak = max(peak, memory_of(process.pid))
        time.sleep(0.3)
    if process.returncode or not first:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return first, peak


def main() -> None:
    """Make the file, train two steps, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--megabytes", type=int, default=510)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data, images, objects = enlarge(arguments.data, Path(temporary) / "data", arguments.megabytes)
        size = (data / "annotations" / "instances_train.json").stat().st_size / 1e6
        out = Path(temporary) / "run"
        command = [sys.executable, "-m", "fishnet", "train", "detection", "--data", str(data), "--out", str(out)]
        seconds, peak = watch([*command, *OPTIONS], out)
    record(
        "29_large_annotations",
        f"an annotation file of {size:.0f} MB ({images:,} images, {objects:,} objects)",
        f"first training step within {SECONDS:.0f} s, peak memory under {GIGABYTES:.0f} GB",
        f"first step after {seconds:.0f} s, peak memory {peak:.1f} GB over all processes",
        seconds <= SECONDS and peak < GIGABYTES,
        note=f"options: {' '.join(OPTIONS)}",
    )


if __name__ == "__main__":
    main()
