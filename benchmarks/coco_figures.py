"""COCO's figures against pycocotools: are they equal, and how long do they take?

python benchmarks/coco_figures.py equal COCO     the real val2017 with perturbed predictions; keypoints on made data
python benchmarks/coco_figures.py speed COCO     5,000 images with 100 detections each, made from the real annotations

COCO is the embedded set (`unpack.py DEST coco`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import PROJECT, record

from fishnet.data.detection.coco import CocoFile, read_coco
from fishnet.tasks.detection.evaluator import BOX_FIGURES, KEYPOINT_FIGURES, KINDS, DetectionEvaluator

sys.path.insert(0, str(PROJECT))
from tests.tasks.predictions import keypoint_file, oracle, perturbed

FIELD = {"box": "bbox", "mask": "segmentation", "keypoint": "keypoints"}
IMAGES, DETECTIONS = 5000, 100


def differences(path: Path, file: CocoFile, found: dict[int, dict[str, Any]], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return per kind the largest difference of any figure, and the oracle's AP."""
    evaluator = DetectionEvaluator(file, kinds)
    for image, one in found.items():
        evaluator.add(image, one)
    metrics = evaluator.compute().metrics
    result = {}
    for kind in kinds:
        keys = ("image_id", "category_id", "score", FIELD[kind])
        expected = oracle(path, [{key: entry[key] for key in keys} for entry in evaluator.results()], KINDS[kind])
        names = KEYPOINT_FIGURES if kind == "keypoint" else BOX_FIGURES
        worst = max(abs(metrics[f"{kind}_{name}"] - value) for name, value in zip(names, expected, strict=True))
        result[kind] = (worst, expected[0])
    return result


def equal(data: Path) -> None:
    """Compare all figures on three seeds and on made keypoints."""
    path = data / "annotations" / "instances_val2017.json"
    file = read_coco(path)
    table, worst = [], 0.0
    for seed in range(3):
        for kind, (gap, ap) in differences(path, file, perturbed(file, seed), ("box", "mask")).items():
            table.append({"metrics of": f"{kind}, seed {seed}", "AP": f"{ap:.4f}", "largest difference": f"{gap:.1e}"})
            worst = max(worst, gap)
    with tempfile.TemporaryDirectory() as folder:
        made, points, found = keypoint_file(Path(folder), 17)
        gap, ap = differences(made, points, found, ("keypoint",))["keypoint"]
    table.append({"metrics of": "keypoint, made data", "AP": f"{ap:.4f}", "largest difference": f"{gap:.1e}"})
    worst = max(worst, gap)
    record(
        "21_coco_figures",
        "COCO metrics against pycocotools: real annotations, predictions shifted, dropped, doubled, rescored, "
        "on crowds",
        "equal to 1e-6",
        f"largest difference {worst:.1e}",
        worst <= 1e-6,
        table,
    )


def many(source: Path, folder: Path) -> Path:
    """Write an annotation file of 5,000 images, the real ones over and over."""
    document = json.loads(source.read_text("utf-8"))
    of_image: dict[int, list[dict[str, Any]]] = {}
    for entry in document["annotations"]:
        of_image.setdefault(entry["image_id"], []).append(entry)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(IMAGES):
        image = document["images"][number % len(document["images"])]
        images.append({**image, "id": number + 1})
        for entry in of_image.get(image["id"], []):
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": number + 1})
    path = folder / "instances_val.json"
    path.write_text(json.dumps({**document, "images": images, "annotations": annotations}), "utf-8")
    return path


def detections(file: CocoFile) -> dict[int, dict[str, Any]]:
    """Return 100 detections per image: the perturbed truth and, up to the number, what a network says besides."""
    found = perturbed(file, 0)
    generator = np.random.default_rng(1)
    for image, one in found.items():
        size = np.array([file.widths[image], file.heights[image]] * 2)
        more = max(0, DETECTIONS - len(one["labels"]))
        corners = np.sort(generator.random((more, 2, 2)), axis=1).reshape(-1, 4) * (size - 2)
        corners[:, 2:] += 1
        donors = [one["masks"][i % len(one["masks"])] for i in range(more)] if one["masks"] else []
        found[image] = {
            "boxes": np.concatenate([one["boxes"], corners])[:DETECTIONS],
            "labels": [*one["labels"], *generator.integers(0, len(file.classes), more).tolist()][:DETECTIONS],
            "scores": [*one["scores"], *(generator.random(more) * 0.3).round(3).tolist()][:DETECTIONS],
        }
        if donors or not more:
            found[image]["masks"] = [*one["masks"], *donors][:DETECTIONS]
    return found


def speed(data: Path) -> None:
    """Take the time of both, boxes and masks, in one run."""
    table, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = many(data / "annotations" / "instances_val2017.json", Path(folder))
        file = read_coco(path)
        found = detections(file)
        for kind in ("box", "mask"):
            chosen = {image: one for image, one in found.items() if kind == "box" or "masks" in one}
            begin = time.perf_counter()
            evaluator = DetectionEvaluator(file, (kind,))
            for image, one in chosen.items():
                evaluator.add(image, one)
            metrics = evaluator.compute().metrics
            ours = time.perf_counter() - begin
            keys = ("image_id", "category_id", "score", FIELD[kind])
            results = [{key: entry[key] for key in keys} for entry in evaluator.results()]
            with contextlib.redirect_stdout(io.StringIO()):
                truth = COCO(str(path))
                begin = time.perf_counter()
                run = COCOeval(truth, truth.loadRes(results), KINDS[kind])
                run.params.imgIds = [int(file.image_ids[image]) for image in chosen]
                run.evaluate()
                run.accumulate()
                run.summarize()
            theirs = time.perf_counter() - begin
            ratios.append(ours / theirs)
            gap = abs(metrics[f"{kind}_ap"] - float(run.stats[0]))
            table.append(
                {
                    "kind": kind,
                    "detections": len(results),
                    "fishnet": f"{ours:.1f} s",
                    "pycocotools": f"{theirs:.1f} s",
                    "ratio": f"{ratios[-1]:.2f}",
                    "difference of AP": f"{gap:.1e}",
                }
            )
    record(
        "28_coco_speed",
        "evaluation of 5,000 images with 100 detections each, against pycocotools",
        "<= 0.5 of its time",
        f"{ratios[0]:.2f} of its time for boxes, {ratios[1]:.2f} for masks",
        max(ratios) <= 0.5,
        table,
        note="ours from the tensors of a network to the figures; pycocotools from results in memory, its truth loaded",
    )


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "speed"))
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    (equal if arguments.what == "equal" else speed)(arguments.data)


if __name__ == "__main__":
    main()
