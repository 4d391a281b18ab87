"""COCO's metrics against pycocotools, on real annotations with perturbed predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fishnet.data.detection.coco import read_coco
from fishnet.errors import FishnetError
from fishnet.tasks.detection.evaluator import (
    BOX_FIGURES,
    DISPLAY,
    KEYPOINT_FIGURES,
    DetectionEvaluator,
    coco_results,
    evaluate_detections,
    keypoint_sigmas,
)
from tests.tasks.predictions import keypoint_file, oracle, perturbed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def real(unpack: Callable[..., Path]) -> Path:
    return unpack("coco", mini=False) / "annotations" / "instances_val2017.json"


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_equal_those_of_pycocotools(real: Path, seed: int) -> None:
    file = read_coco(real)
    assert file.crowd.any()
    evaluator = DetectionEvaluator(file, ("box", "mask"))
    for image, found in perturbed(file, seed).items():
        evaluator.add(image, found)
    metrics = evaluator.compute().metrics
    results = evaluator.results()
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        keys = ("image_id", "category_id", "score", {"box": "bbox", "mask": "segmentation"}[kind])
        expected = oracle(real, [{key: entry[key] for key in keys} for entry in results], name)
        assert expected[0] > 0.2
        for figure, value in zip(BOX_FIGURES, expected, strict=True):
            assert metrics[f"{kind}_{figure}"] == pytest.approx(value, abs=1e-6), (kind, figure)


def test_truth_against_itself_is_perfect(real: Path) -> None:
    file = read_coco(real)
    found = {}
    for image in range(len(file)):
        objects = [index for index in file.objects(image).tolist() if not file.crowd[index]]
        corners = file.boxes[objects].copy().reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        found[image] = {
            "boxes": corners, "labels": file.class_of[objects], "scores": [1.0] * len(objects),
            "masks": [file.mask(index) for index in objects],
        }  # fmt: skip
    evaluation = evaluate_detections(file, {i: coco_results(file, i, one) for i, one in found.items()}, ("box", "mask"))
    assert evaluation.metrics["box_ap"] == pytest.approx(1)
    assert evaluation.metrics["mask_ap"] == pytest.approx(1)
    rows = [row for row in evaluation.per_class if row["objects"]]
    assert all(row["box_ap"] == pytest.approx(1) for row in rows)
    assert evaluation.curves["box"]["0.5"] == pytest.approx([1.0] * 101)
    assert evaluation.images == len(file)


def test_keypoints_equal_pycocotools(tmp_path: Path) -> None:
    path, file, found = keypoint_file(tmp_path, 17)
    evaluator = DetectionEvaluator(file, ("box", "keypoint"))
    for image, one in found.items():
        evaluator.add(image, one)
    metrics = evaluator.compute().metrics
    keys = ("image_id", "category_id", "score", "keypoints")
    expected = oracle(path, [{key: entry[key] for key in keys} for entry in evaluator.results()], "keypoints")
    assert 0.1 < expected[0] < 1
    for figure, value in zip(KEYPOINT_FIGURES, expected, strict=True):
        assert metrics[f"keypoint_{figure}"] == pytest.approx(value, abs=1e-6), figure


def test_another_number_of_keypoints_is_judged_too(tmp_path: Path) -> None:
    _, file, found = keypoint_file(tmp_path, 5)
    evaluation = evaluate_detections(file, {i: coco_results(file, i, one) for i, one in found.items()}, ("keypoint",))
    assert 0 < evaluation.metrics["keypoint_ap"] <= 1
    assert len(keypoint_sigmas(5)) == 5


def test_only_images_that_were_seen_count(real: Path) -> None:
    file = read_coco(real)
    found = perturbed(file, 2)
    half = {image: found[image] for image in range(0, len(file), 2)}
    evaluator = DetectionEvaluator(file)
    for image, one in half.items():
        evaluator.add(image, one)
    keys = ("image_id", "category_id", "score", "bbox")
    results = [{key: entry[key] for key in keys} for entry in evaluator.results()]
    ids = [int(file.image_ids[image]) for image in half]
    assert evaluator.compute().metrics["box_ap"] == pytest.approx(oracle(real, results, "bbox", ids)[0], abs=1e-6)


def test_no_detection_at_all_is_zero_and_no_image_is_an_error(real: Path) -> None:
    file = read_coco(real)
    evaluator = DetectionEvaluator(file, ("box", "mask"))
    with pytest.raises(FishnetError, match="no image was evaluated"):
        evaluator.compute()
    for image in range(len(file)):
        evaluator.add(image, {"boxes": np.zeros((0, 4)), "labels": [], "scores": [], "masks": []})
    metrics = evaluator.compute().metrics
    assert metrics["box_ap"] == metrics["mask_ap"] == 0
    assert DISPLAY.primary_of(metrics) == "mask_ap"


def test_numbers_that_are_none_are_an_error(real: Path) -> None:
    evaluator = DetectionEvaluator(read_coco(real))
    with pytest.raises(FishnetError, match="NaN or infinite"):
        evaluator.add(0, {"boxes": [[0, 0, float("nan"), 5]], "labels": [0], "scores": [0.5]})
    with pytest.raises(FishnetError, match="cannot evaluate"):
        DetectionEvaluator(read_coco(real), ("smell",))


@pytest.mark.parametrize("crowd", [False, True], ids=["no annotation", "a crowd only"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_split_without_objects_has_nothing_to_judge(tmp_path: Path, crowd: bool, count: int) -> None:
    region = {"size": [50, 60], "counts": [0, 100, 2900]}
    entry = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 1}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 50}],
        "annotations": [{**entry, "segmentation": region}] if crowd else [],
        "categories": [{"id": 3, "name": "fish"}],
    }
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(document))
    evaluator = DetectionEvaluator(read_coco(path))
    evaluator.add(0, {"boxes": np.array([[1.0, 1, 20, 20]] * count), "labels": [0] * count, "scores": [0.5] * count})
    evaluation = evaluator.compute()
    assert evaluation.metrics["box_ap"] == -1
    assert evaluation.per_class == [{"class": "fish", "objects": 0, "box_ap": None, "box_ap50": None}]
    assert evaluation.curves["box"] == {"0.5": [], "0.75": []}


def test_an_annotation_of_id_0_can_be_found(tmp_path: Path) -> None:
    entries = [
        {"id": n, "image_id": 0, "category_id": 1, "bbox": [30 * n, 5, 20, 20], "area": 400, "iscrowd": 0}
        for n in (0, 1)
    ]
    path = tmp_path / "instances_val.json"
    images = [{"id": 0, "file_name": "0.jpg", "width": 60, "height": 40}]
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}))
    file = read_coco(path)
    found = {"boxes": [[0, 5, 20, 25], [30, 5, 50, 25]], "labels": [0, 0], "scores": [0.9, 0.8]}
    assert evaluate_detections(file, {0: coco_results(file, 0, found)}).metrics["box_ap"] == pytest.approx(1.0)


def test_keypoints_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    _, file, found = keypoint_file(tmp_path, 5)
    one = next(value for value in found.values() if len(value["labels"]))
    one["keypoints"] = np.full_like(np.asarray(one["keypoints"], dtype=float), np.inf)
    with pytest.raises(FishnetError, match="NaN or infinite boxes, scores or keypoints"):
        DetectionEvaluator(file, ("keypoint",)).add(0, one)


def _evaluate_nothing(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    file = read_coco(Path(folder) / "keypoints.json")
    evaluator = DetectionEvaluator(file, ("box",))
    evaluator.file = None  # type: ignore[assignment]  # the first process fails where only it works
    evaluator._found = {0: []}
    try:
        evaluator.compute()
    except AttributeError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(120)
def test_a_failure_of_the_first_process_ends_all(tmp_path: Path) -> None:
    path, _, _ = keypoint_file(tmp_path, 5)
    path.rename(tmp_path / "keypoints.json")
    torch.multiprocessing.start_processes(_evaluate_nothing, (str(tmp_path),), nprocs=2, start_method="fork")
    assert "has no attribute" in (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text() == (tmp_path / "0.txt").read_text()


def without_outlines(real: Path, out: Path, every: int) -> Path:
    """Write annotations in which every n-th object that is not a crowd has no outline."""
    document = json.loads(real.read_text("utf-8"))
    singles = [one for one in document["annotations"] if not one["iscrowd"]]
    for one in singles[::every]:
        del one["segmentation"]
    out.write_text(json.dumps(document))
    return out


def test_masks_are_not_judged_on_objects_without_an_outline(real: Path, tmp_path: Path) -> None:
    """The truth found again is perfect, whatever mask is predicted inside the box of an object without an outline."""
    file = read_coco(without_outlines(real, tmp_path / "instances_val.json", 2))
    whole = read_coco(real)
    assert file.without_outline > 100
    found = {}
    for image in range(len(file)):
        objects = [index for index in file.objects(image).tolist() if not file.crowd[index]]
        corners = file.boxes[objects].copy().reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = [whole.mask(index) for index in objects]
        found[image] = {"boxes": corners, "labels": file.class_of[objects], "scores": [1.0] * len(objects)}
        found[image]["masks"] = masks
    results = {i: coco_results(file, i, one) for i, one in found.items()}
    evaluation = evaluate_detections(file, results, ("box", "mask"))
    assert evaluation.metrics["mask_ap"] == pytest.approx(1, abs=2e-3)  # some masks stand out of their box
    assert evaluation.metrics["mask_ap50"] == pytest.approx(1)
    # nothing is missed where an object without an outline is not found
    outlined = {
        image: {name: [value[place] for place, known in enumerate(kinds) if known] for name, value in one.items()}
        for image, one in found.items()
        for kinds in [[file.outlines.kind[i] != 0 for i in file.objects(image).tolist() if not file.crowd[i]]]
    }
    results = {i: coco_results(file, i, one) for i, one in outlined.items()}
    evaluation = evaluate_detections(file, results, ("box", "mask"))
    assert evaluation.metrics["mask_ap"] == pytest.approx(1)
    assert evaluation.metrics["box_ap"] < 0.9, "boxes are judged on all objects"
