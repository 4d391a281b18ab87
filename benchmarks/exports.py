"""Exported networks: whether they give the answers of PyTorch on photos, and what int8 costs on real data.

python benchmarks/exports.py equal PHOTOS... --runs RUN... [--images 32] [--alone PYTHON]
python benchmarks/exports.py int8 --classifier RUN DATA --detector RUN DATA --segmenter RUN DATA

RUN are finished runs. `equal` exports each as ONNX and OpenVINO in fp32 and compares the answers on photos of mixed
sizes, taken evenly from the folders PHOTOS; PYTHON is an interpreter of an environment with NumPy, Pillow, onnxruntime
and openvino alone, where the runner of each export predicts on the same photos. `int8` calibrates on the training split
of DATA and evaluates on its validation split, or on its test split if it has one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import record
from runs import fishnet
from torchvision.ops import box_iou

from fishnet.data.folders import image_files, photo_files
from fishnet.data.run_lengths import decode
from fishnet.deploy.difference import largest
from fishnet.loading import load_model
from fishnet.predictor import Predictor
from fishnet.tasks import get_task

FORMATS = ("onnx", "openvino")
SCORE, MARGIN = 0.3, 2e-3
"""Threshold of the compared objects, and how much above it an object has to be found in both."""
LEAST = {"top1": 0.005, "box_ap": 0.01, "mask_ap": 0.01, "miou": 0.01}
"""Largest loss of each metric by int8."""
ALONE = "import sys, importlib.util as u; sys.exit(any(map(u.find_spec, ('torch', 'fishnet', 'torchvision'))))"
"""Fails in an environment that has PyTorch or this library."""


@dataclass
class Compared:
    """Differences of two predictors over photos, in pixels of the photos and with masks pasted into them.

    The verification of `fishnet export` compares in the size of the network; this one does not rely on it.
    """

    objects: int = 0
    found: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 1.0
    pixels: float = 1.0

    def add(self, wanted: dict[str, Any], got: dict[str, Any]) -> None:
        """Compare the answers for one photo."""
        if "boxes" in wanted:
            self._objects(wanted, got)
        elif "label_map" in wanted:
            self.pixels = min(self.pixels, float((wanted["label_map"] == got["label_map"]).mean()))
        elif "scores" in wanted:
            ours = dict(zip(wanted["indices"], wanted["scores"], strict=True))
            theirs = dict(zip(got["indices"], got["scores"], strict=True))
            self.score = largest(self.score, *(abs(ours[n] - theirs[n]) for n in ours.keys() & theirs.keys()))
        else:
            for level in wanted.keys() - {"panoptic"}:
                self.add(wanted[level], got[level])

    def _objects(self, wanted: dict[str, Any], got: dict[str, Any]) -> None:
        boxes = [torch.tensor(one["boxes"], dtype=torch.float64).reshape(-1, 4) for one in (wanted, got)]
        same = torch.tensor(wanted["indices"])[:, None] == torch.tensor(got["indices"])[None]
        overlap = box_iou(*boxes) * same.reshape(len(boxes[0]), len(boxes[1]))
        extra = torch.tensor(got["scores"]) > SCORE + MARGIN
        for place, score in enumerate(wanted["scores"]):
            if score < SCORE + MARGIN:
                continue
            self.objects += 1
            if not overlap.shape[1] or float(overlap[place].max()) < 0.9:
                continue
            other = int(overlap[place].argmax())
            overlap[place, :] = overlap[:, other] = 0
            extra[other] = False
            self.found += 1
            self.score = largest(self.score, abs(score - got["scores"][other]))
            self.box = largest(self.box, float((boxes[0][place] - boxes[1][other]).abs().max()))
            if "masks" in wanted:
                runs = (wanted["masks"][place], got["masks"][other])
                one, two = (decode([run], *run["size"])[0].bool() for run in runs)
                self.mask = min(self.mask, float((one & two).sum() / (one | two).sum().clamp(min=1)))
        # an extra object has no match in PyTorch, not even one with a lower score
        self.objects += int((extra & ~(overlap >= 0.9).any(0)).sum())

    def good(self) -> bool:
        """Return whether the answers are the same."""
        objects = self.found == self.objects and self.box <= 0.1 and self.mask >= 0.99
        return objects and self.score <= 1e-3 and self.pixels >= 0.999

    def row(self) -> dict[str, str]:
        """Return the differences as columns of a table."""
        return {
            "objects found in both": f"{self.found} of {self.objects}",
            "boxes, px": f"{self.box:.1e}",
            "scores": f"{self.score:.1e}",
            "smallest mask IoU": f"{self.mask:.4f}",
            "pixels with equal class, worst photo": f"{self.pixels:.5f}",
        }


def chosen_photos(folders: Iterable[Path], count: int) -> list[Path]:
    """Return photos spread over folders."""
    files = [photo_files(folder) for folder in folders]
    share = -(-count // len(files))
    return [one[place] for one in files for place in np.linspace(0, len(one) - 1, share).astype(int)][:count]


def options_of(run: Path) -> dict[str, float]:
    """Return the options of a predictor that names objects."""
    kind = get_task(load_model(run)[1].task)
    return {"score": SCORE} if "score" in {option.name for option in fields(kind.options)} else {}


def equal_alone(
    folder: Path, photos: list[Path], python: Path, work: Path, exported: Predictor, options: dict[str, float]
) -> int:
    """Return the number of photos for which the runner of an export, without PyTorch, prints what it answers here."""
    subprocess.run([python, "-c", ALONE], check=True)
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [python, folder / "runner.py", *photos, "--out", work / "maps", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=work, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return sum(printed(line, exported(path)) for line, path in zip(lines, photos, strict=True))


def printed(line: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Return whether a line of the runner is an answer of `Predictor`, to its rounding."""
    levels = [level for level in ("image", "region", "pixel") if level in answer]
    if levels:
        return all(printed({**line, "predictions": line[level]}, answer[level]) for level in levels)
    if "label_map" in answer:
        with Image.open(line["label_map"]) as image:
            return bool((np.asarray(image) == answer["label_map"]).mean() >= 0.999)
    entries = line["predictions"]
    if [entry["index"] for entry in entries] != list(answer["indices"]):
        return False
    pairs = [(entry["score"], score) for entry, score in zip(entries, answer["scores"], strict=True)]
    far = [abs(a - b) > 1e-3 for a, b in pairs]
    if "boxes" in answer:
        boxes = zip((entry["box"] for entry in entries), answer["boxes"], strict=True)
        far += [abs(a - b) > 0.1 for one, other in boxes for a, b in zip(one, other, strict=True)]
    return not any(far)


def equal(arguments: argparse.Namespace) -> None:
    """Compare exports with PyTorch and record the differences."""
    photos = chosen_photos(arguments.photos, arguments.images)
    sizes = set()
    for path in photos:
        with Image.open(path) as image:
            sizes.add(image.size)
    rows, good = [], True
    with tempfile.TemporaryDirectory() as text:
        for run in arguments.runs:
            score = options_of(run)
            reference = Predictor(run, "cpu", **score)
            for form in FORMATS:
                folder = Path(text) / f"{run.name}_{form}"
                fishnet("export", run, "--format", form, "--out", folder, "--images", arguments.photos[0])
                exported, found = Predictor(folder, **score), Compared()
                for path in photos:
                    found.add(reference(path), exported(path))
                good &= found.good()
                alone = "not tried"
                if arguments.alone:
                    same = equal_alone(folder, photos, arguments.alone, Path(text), exported, score)
                    alone, good = f"{same} of {len(photos)} photos the same", good and same == len(photos)
                row = {"task": reference.card.task, "model": reference.card.model, "format": form, **found.row()}
                rows.append({**row, "runner without PyTorch": alone})
                print(rows[-1], flush=True)
    record(
        "48_exports",
        f"exported networks against PyTorch on {len(photos)} photos of {len(sizes)} sizes, fp32",
        "the same objects: boxes within 0.1 px, scores 1e-3, masks IoU >= 0.99",
        f"{len(rows)} exports, " + ("all the same" if good else "with differences"),
        good,
        rows,
        note=f"objects with a score above {SCORE + MARGIN:g}; class scores and label maps likewise",
    )


def metrics_of(source: Path, data: Path, split: str, work: Path) -> dict[str, float]:
    """Return the metrics of a run in fp32, or of an export."""
    file = work / "metrics.json"
    more = [] if (source / "export.json").exists() else ["--precision", "fp32"]
    fishnet("evaluate", source, "--data", data, "--split", split, "--json", file, "--out", work, *more)
    return json.loads(file.read_text("utf-8"))["metrics"]


def agreement(run: Path, folder: Path, photos: list[Path]) -> float:
    """Return the share of photos with the same most probable class."""
    answers = [[answer["indices"][0] for answer in Predictor(one, "cpu").batch(photos)] for one in (run, folder)]
    return float(np.mean(np.equal(*answers)))


def quantized(kind: str, run: Path, data: Path, more: list[str]) -> list[dict[str, Any]]:
    """Return the rows of one network."""
    split = "test" if (data / "test").is_dir() else "val"
    with tempfile.TemporaryDirectory() as text:
        folder, work = Path(text) / "int8", Path(text) / "work"
        work.mkdir()
        options = ["--precision", "int8", "--calibration", data / "train", "--out", folder, *more]
        minutes = fishnet("export", run, *options)
        before, after = (metrics_of(one, data, split, work) for one in (run, folder))
        rows: list[dict[str, Any]] = []
        for name, least in LEAST.items():
            if name in before and name in after:
                drop = before[name] - after[name]
                row = {"network": kind, "split": split, "metric": name, "fp32": before[name], "int8": after[name]}
                rows.append({**row, "drop": drop, "allowed": least, "minutes": minutes, "good": drop <= least})
        if kind == "classifier":
            same = agreement(run, folder, list(image_files(data / split)))
            row = {"network": kind, "split": split, "metric": "agreement", "fp32": 1.0, "int8": same}
            rows.append({**row, "drop": 1 - same, "allowed": 0.03, "minutes": minutes, "good": same >= 0.97})
    return rows


def int8(arguments: argparse.Namespace, more: list[str]) -> None:
    """Export in int8, evaluate, and record what it costs."""
    rows = []
    for kind in ("classifier", "detector", "segmenter"):
        if pair := getattr(arguments, kind):
            rows += quantized(kind, *pair, more)
    table = []
    for row in rows:
        figures = {n: f"{v:.{1 if n == 'minutes' else 4}f}" for n, v in row.items() if isinstance(v, float)}
        table.append({**{n: v for n, v in row.items() if isinstance(v, str)}, **figures})
    record(
        "49_int8",
        "int8 exports against fp32 on real data",
        "top-1 drop <= 0.005, agreement >= 0.97; AP and mIoU within 0.01",
        ", ".join(f"{row['network']} {row['metric']} {row['fp32']:.4f} to {row['int8']:.4f}" for row in rows),
        all(row["good"] for row in rows),
        table,
        note=f"minutes of the export; options {' '.join(more) or 'none'}",
    )


def main() -> None:
    """Measure one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "int8"))
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--runs", type=Path, nargs="+", default=[])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--alone", type=Path, help="interpreter of an environment without PyTorch")
    for kind in ("classifier", "detector", "segmenter"):
        parser.add_argument(f"--{kind}", type=Path, nargs=2, metavar=("RUN", "DATA"))
    arguments, more = parser.parse_known_args()
    if arguments.what == "int8":
        int8(arguments, [option for option in more if option != "--"])
    elif not arguments.photos or not arguments.runs:
        parser.error("equal needs PHOTOS and --runs")
    else:
        equal(arguments)


if __name__ == "__main__":
    main()
