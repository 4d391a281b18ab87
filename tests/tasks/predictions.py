"""Predictions made from true annotations, and what pycocotools says of them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fishnet.data.detection.coco import CocoFile, read_coco


def oracle(path: Path, results: list[dict[str, Any]], kind: str, images: list[int] | None = None) -> list[float]:
    """Return the figures of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found = truth.loadRes([dict(entry) for entry in results])
        run = COCOeval(truth, found, kind)
        if images is not None:
            run.params.imgIds = images
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


def perturbed(file: CocoFile, seed: int) -> dict[int, dict[str, Any]]:
    """Return predictions per image: shifted, dropped, rescored, doubled, of the wrong class, and on crowds."""
    generator = np.random.default_rng(seed)
    found = {}
    for image in range(len(file)):
        height, width = int(file.heights[image]), int(file.widths[image])
        boxes, labels, scores, masks = [], [], [], []
        for index in file.objects(image).tolist():
            if generator.random() < 0.2:
                continue
            for _ in range(1 + (generator.random() < 0.2)):
                x, y, w, h = file.boxes[index]
                move = generator.normal(0, 0.08, 4) * [w, h, w, h]
                x1, y1 = np.clip([x + move[0], y + move[1]], 0, [width - 1, height - 1])
                x2, y2 = np.clip([x + w + move[2], y + h + move[3]], [x1 + 0.5, y1 + 0.5], [width, height])
                boxes.append([x1, y1, x2, y2])
                wrong = generator.random() < 0.1
                labels.append(int(generator.integers(len(file.classes))) if wrong else int(file.class_of[index]))
                # equal scores must be ordered alike
                scores.append(round(float(generator.random()), 2))
                masks.append(shifted(file, index, generator))
        found[image] = {"boxes": np.array(boxes).reshape(-1, 4), "labels": labels, "scores": scores, "masks": masks}
    return found


def shifted(file: CocoFile, index: int, generator: np.random.Generator) -> dict[str, Any]:
    mask = run_lengths.decode(file.mask(index))
    moved = np.roll(mask, generator.integers(-4, 5, 2), (0, 1))
    return run_lengths.encode(np.asfortranarray(moved))


def keypoint_file(folder: Path, count: int) -> tuple[Path, CocoFile, dict[int, dict[str, Any]]]:
    generator = np.random.default_rng(3)
    images = [{"id": 5 + 3 * i, "file_name": f"{i}.jpg", "width": 200, "height": 160} for i in range(6)]
    annotations, found = [], {}
    for place, image in enumerate(images):
        boxes, points, scores = [], [], []
        for _ in range(3):
            x, y = generator.uniform(0, 80, 2)
            w, h = generator.uniform(40, 70, 2)
            own = np.column_stack([generator.uniform(x, x + w, count), generator.uniform(y, y + h, count)])
            seen = generator.integers(0, 3, count)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 0,
                "bbox": [x, y, w, h], "area": w * h / 2, "num_keypoints": int((seen > 0).sum()),
                "keypoints": np.column_stack([own, seen]).flatten().tolist(),
            })  # fmt: skip
            boxes.append([x, y, x + w, y + h])
            points.append(np.column_stack([own + generator.normal(0, 2, own.shape), np.ones(count)]))
            scores.append(float(generator.random()))
        found[place] = {"boxes": np.array(boxes), "labels": [0] * 3, "scores": scores, "keypoints": np.array(points)}
    category = {"id": 1, "name": "person", "keypoints": [f"k{i}" for i in range(count)], "skeleton": []}
    path = folder / "instances_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return path, read_coco(path), found
