"""Annotation files with any structural damage: one clear line, or faults that are counted; never a crash."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_of

from fishnet.data.detection.checks import check_detection, fix_coco
from fishnet.data.detection.coco import CocoFile, read_coco
from fishnet.data.detection.dataset import DetectionDataset, open_detection
from fishnet.data.images import BadImageError
from fishnet.errors import FishnetError
from fishnet.tasks.detection.evaluator import coco_results, evaluate_detections
from tests.data.makers import noise, put
from tests.fuzzing import mutate

SIZES = [(40, 24), (24, 36)]


def valid() -> dict[str, Any]:
    """Return a document that holds everything that the reader knows."""
    square = np.zeros((36, 24, 1), dtype=np.uint8, order="F")
    square[5:30, 3:20] = 1
    coded = rle_of.encode(square)[0]["counts"].decode()
    common = {"iscrowd": 0, "area": 100.0}
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 7 * n, "file_name": f"{n}.jpg", "width": w, "height": h} for n, (w, h) in enumerate(SIZES)
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"]},
            {"id": 9, "name": "cat"},
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [4, 4, 16, 16], "num_keypoints": 2, **common,
             "segmentation": [[4, 4, 20, 4, 4, 20]], "keypoints": [5, 6, 2, 0, 0, 0]},
            {"id": 2, "image_id": 0, "category_id": 9, "bbox": [10.5, 2, 20, 20.5], **common,
             "segmentation": [[10, 2, 30, 2, 30, 12], [11, 12, 20, 12, 20, 22, 11, 22]]},
            {"id": 3, "image_id": 7, "category_id": 9, "bbox": [3, 5, 17, 25], **common,
             "segmentation": {"size": [36, 24], "counts": coded}},
            {"id": 4, "image_id": 7, "category_id": 9, "bbox": [0, 0, 12, 36], "area": 432, "iscrowd": 1,
             "segmentation": {"size": [36, 24], "counts": [0, 36 * 12, 36 * 12]}},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81},
        ],
    }  # fmt: skip


def folder(root: Path) -> Path:
    """Write the images of `valid`, and return the path that its annotations belong to."""
    for number, size in enumerate(SIZES):
        put(root / "train" / f"{number}.jpg", noise(number, *size))
    (root / "annotations").mkdir()
    return root / "annotations" / "instances_train.json"


def exercise(root: Path, path: Path, document: Any, deep: bool = True) -> None:
    """Do with a document all that the library does with one; raises FishnetError where it cannot be used at all.

    Without `deep` the slower half is left out: `data check` and the judging.
    """
    path.write_text(json.dumps(document))
    file = read_coco(path)
    faults = [fault for fault in [*file.problems, *file.left_out] if "annotation" in fault.where]
    assert len(file.object_ids) + len(faults) == len(document["annotations"]), "an object vanished"
    for image in range(len(file)):
        for index in file.objects(image):
            mask = file.mask(int(index))
            assert mask["size"] == [file.heights[image], file.widths[image]]
            if file.heights[image] * file.widths[image] < 10**6:
                assert rle_of.decode([mask]).shape == (file.heights[image], file.widths[image], 1)
    if deep:
        report = check_detection(root, workers=1, progress=False)
        assert {fault.kind for fault in file.problems} <= {problem.kind for problem in report.problems}
    mended, _ = fix_coco(path, root / "train")
    if len(file):
        dataset = open_detection(root, "train", bad_images="skip")
        dataset.masks = dataset.keypoints = True
        for index in range(len(dataset)):
            load_sample(dataset, index)
        if deep:
            judge_all(file)
    path.write_text(json.dumps(mended))
    again = read_coco(path)
    assert not [*again.problems, *again.left_out], "--fix left faults behind"


def load_sample(dataset: DetectionDataset, index: int) -> None:
    try:
        target = dataset.sample(index)["target"]
    except BadImageError:
        return
    counts = {name: len(value) for name, value in target.items()}
    assert counts.pop("crowds", 0) == counts.pop("crowd_labels", 0)
    assert set(counts.values()) == {len(target["labels"])}
    assert bool(target["boxes"].isfinite().all())


def judge_all(file: CocoFile) -> None:
    """Judge the truth itself."""
    images = list(range(len(file)))
    found = {}
    for image in images:
        objects = file.objects(image)
        corners = file.boxes[objects] + np.pad(file.boxes[objects][:, :2], [(0, 0), (2, 0)])
        one = {"boxes": corners, "labels": file.class_of[objects], "scores": np.ones(len(objects))}
        one["masks"] = [file.mask(int(index)) for index in objects]
        if file.keypoints is not None:
            one["keypoints"] = file.keypoints[objects]
        found[image] = coco_results(file, image, one)
    kinds = ("box", "mask", "keypoint") if file.keypoints is not None else ("box", "mask")
    metrics = evaluate_detections(file, found, kinds).metrics
    assert all(np.isfinite(value) for value in metrics.values()), metrics


def check_message(error: FishnetError, path: Path) -> None:
    text = str(error)
    assert "\n" not in text
    assert path.name in text or path.parent.parent.name in text
    assert len(text) < 1500
    text.encode()


def run(root: Path, seed: int, count: int) -> tuple[int, int]:
    """Exercise mutated documents; return how many were refused and how many had faults."""
    path, rng, document = folder(root), random.Random(seed), valid()
    refused = 0
    for number in range(count):
        mutated = mutate(document, rng)
        try:
            exercise(root, path, mutated, deep=number % 3 == 0)
        except FishnetError as error:
            check_message(error, path)
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {json.dumps(mutated)[:3000]}") from error
    return refused, count


def test_a_valid_document_has_no_fault(tmp_path: Path) -> None:
    path = folder(tmp_path)
    exercise(tmp_path, path, valid())
    path.write_text(json.dumps(valid()))
    file = read_coco(path)
    assert (len(file.object_ids), file.problems, file.left_out) == (5, [], [])


def test_damaged_documents_end_in_one_line_or_in_counted_faults(tmp_path: Path) -> None:
    refused, count = run(tmp_path, seed=0, count=400)
    assert 0 < refused < count / 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_documents(tmp_path: Path) -> None:
    run(tmp_path, seed=1, count=20_000)
