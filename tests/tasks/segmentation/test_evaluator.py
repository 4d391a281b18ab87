"""Metrics of segmentation against definitions written apart, on random and on real label maps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet import create_model
from fishnet.errors import FishnetError
from fishnet.tasks.segmentation.evaluator import (
    DISPLAY,
    METRICS,
    SegmentationEvaluation,
    SegmentationEvaluator,
    boundary_width,
    draw_classes,
    draw_pixel_confusion,
)
from tests.tasks.segmentation import oracle


def evaluated(pairs: list[oracle.Pair], classes: int, ignore: int = 255) -> SegmentationEvaluation:
    evaluator = SegmentationEvaluator([f"class {index}" for index in range(classes)], ignore)
    for found, truth in pairs:
        evaluator.update(torch.from_numpy(found), truth)
    return evaluator.compute()


def check(pairs: list[oracle.Pair], classes: int, ignore: int = 255) -> SegmentationEvaluation:
    """Compare an evaluation with the definitions, and return it."""
    result = evaluated(pairs, classes, ignore)
    assert result.confusion is not None
    assert result.confusion.dtype == np.int64
    assert result.confusion.tolist() == oracle.confusion(pairs, classes, ignore)
    places = range(classes)
    expected = {
        "miou": oracle.mean([oracle.iou(pairs, index, ignore) for index in places]),
        "boundary_iou": oracle.mean([oracle.iou(pairs, index, ignore, near_contours=True) for index in places]),
        "mean_accuracy": oracle.mean([oracle.recall(pairs, index) for index in places]),
    }
    valid = sum(int((truth != ignore).sum()) for _, truth in pairs)
    right = sum(int(((truth != ignore) & (found == truth)).sum()) for found, truth in pairs)
    expected["pixel_accuracy"] = right / valid if valid else -1
    assert result.metrics.keys() == set(METRICS) == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-9 if name == "boundary_iou" else 1e-12), name
    for index, row in enumerate(result.per_class):
        assert row["iou"] == pytest.approx(oracle.iou(pairs, index, ignore), abs=1e-12)
        assert row["boundary_iou"] == pytest.approx(oracle.iou(pairs, index, ignore, near_contours=True), abs=1e-9)
        assert row["images"] == sum(bool((truth == index).any()) for _, truth in pairs)
    return result


def blobs(generator: np.random.Generator, height: int, width: int, classes: int, ignore: int) -> np.ndarray:
    """Return a label map of rectangles, some of them ignored."""
    found = np.full((height, width), generator.integers(classes), np.uint8)
    for _ in range(12):
        y, x = generator.integers(height), generator.integers(width)
        value = generator.choice([*range(classes), ignore])
        found[y : y + generator.integers(1, height), x : x + generator.integers(1, width)] = value
    return found


@pytest.mark.parametrize("seed", range(4))
def test_random_label_maps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes, ignore = 5, (255, 5, 255, 7)[seed]
    pairs = []
    for _ in range(4):
        height, width = generator.integers(1, 90, 2)
        truth = blobs(generator, height, width, classes - 1, ignore)  # the last class is absent from the truth
        found = blobs(generator, height, width, classes, 0)
        found = np.where(generator.random(truth.shape) < 0.5, found, np.where(truth == ignore, 1, truth))
        pairs.append((found.astype(np.int64), truth))
    result = check(pairs, classes, ignore)
    assert result.per_class[4]["accuracy"] is None
    assert result.per_class[4]["iou"] == 0


def test_camvid(unpack: Callable[..., Path]) -> None:
    folder = unpack("camvid", mini=False) / "val" / "labels"
    generator = np.random.default_rng(0)
    pairs = []
    for path in sorted(folder.glob("*.png"))[:3]:
        truth = np.array(Image.open(path))
        found = np.roll(truth, generator.integers(-9, 10, 2), (0, 1))
        found[found == 11] = 3
        pairs.append((found, truth))
    assert any((truth == 11).any() for _, truth in pairs)
    result = check(pairs, 11, 11)
    assert 0.3 < result.metrics["boundary_iou"] < result.metrics["miou"] < 0.95


def test_pets(mini: Callable[[str], Path]) -> None:
    truths = [np.array(Image.open(path)) for path in sorted((mini("pets3") / "val" / "labels").glob("*.png"))[:4]]
    assert all((truth == 255).any() for truth in truths)
    check([(np.zeros_like(truth), truth) for truth in truths], 2)
    perfect = check([(np.where(truth == 255, 1, truth), truth) for truth in truths], 2)
    assert set(perfect.metrics.values()) == {1.0}


def test_nothing_predicted_is_wrong_everywhere() -> None:
    truth = np.zeros((6, 8), np.uint8)
    truth[2:4] = 1
    truth[0] = 255
    result = check([(np.full_like(truth, 255), truth)], 3)
    assert result.metrics == {"miou": 0, "boundary_iou": 0, "pixel_accuracy": 0, "mean_accuracy": 0}
    assert [row["iou"] for row in result.per_class] == [0, 0, None]


def test_all_pixels_ignored_determine_nothing() -> None:
    result = check([(np.ones((5, 5), np.uint8), np.full((5, 5), 255, np.uint8))], 2)
    assert set(result.metrics.values()) == {-1.0}
    assert all(DISPLAY.text(name, value) == "–" for name, value in result.metrics.items())
    assert result.images == 1


def test_more_than_255_classes() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 300, (40, 50))
    truth[:5] = 65535
    found = np.where(generator.random(truth.shape) < 0.5, generator.integers(0, 300, truth.shape), truth % 65535)
    check([(found, truth)], 300, 65535)


def test_width_of_the_band() -> None:
    # the diagonal of 480x360 is 600
    assert boundary_width(360, 480) == 12
    assert boundary_width(3, 4) == 1


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), "prediction has 4x5 pixels .* label map 5x4"),
        (np.zeros((4, 5), int), np.full((4, 5), 7), "the ground truth has the value 7, .* class \\(0 to 2\\)"),
        (np.full((4, 5), -1), np.zeros((4, 5), int), "the prediction has the value -1"),
        (np.zeros((3, 4, 5), int), np.zeros((4, 5), int), "prediction must be a label map .* int64 of shape"),
        (np.zeros((4, 5)), np.zeros((4, 5), int), "not float64"),
    ],
)
def test_label_maps_that_cannot_be_compared(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(FishnetError, match=message):
        SegmentationEvaluator(["a", "b", "c"]).update(found, truth)


def test_unusable_evaluators() -> None:
    with pytest.raises(FishnetError, match="also the index of the class 'b'"):
        SegmentationEvaluator(["a", "b"], ignore_index=1)
    with pytest.raises(FishnetError, match="at least one class"):
        SegmentationEvaluator([])
    with pytest.raises(FishnetError, match="no image was evaluated"):
        SegmentationEvaluator(["a"]).compute()


def test_the_result_is_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    result = check([(generator.integers(0, 3, (20, 30)), generator.integers(0, 3, (20, 30)))], 4)
    stored = json.loads(json.dumps(result.to_dict()))
    titles = [section.title for section in DISPLAY.sections(stored)]
    assert titles == ["Classes", "IoU per class", "Confusion in percent of the true class"]
    table = DISPLAY.sections(stored)[0].content
    assert table.rows[3] == ["class 3", 0, 0, None, None, None, None]
    assert DISPLAY.primary_of(result.metrics) == "miou"
    labels = [text.get_text() for text in draw_classes(stored["per_class"]).axes[0].get_yticklabels()]
    assert sorted(labels) == ["class 0", "class 1", "class 2"]
    assert DISPLAY.sections({}) == []
    assert "cannot be drawn" in DISPLAY.sections({"confusion": [[1, 2]], "per_class": []})[0].content


def test_confusion_of_many_pixels_fits_into_its_cells() -> None:
    figure = draw_pixel_confusion(np.array([[9_999_000, 1_000, 0], [0, 0, 0], [123_456, 0, 876_544]]), ["a", "b", "c"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["100", "12.3", "87.7"]


def _evaluate_part(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluator = SegmentationEvaluator(["class 0", "class 1", "class 2"])
    pairs = np.load(Path(folder) / "pairs.npy")
    for found, truth in pairs if rank == 1 else pairs[:0]:  # one process has no images
        evaluator.update(found, truth)
    Path(folder, f"{rank}.json").write_text(json.dumps(evaluator.compute().to_dict()))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(120)
def test_two_processes_have_the_result_of_one(tmp_path: Path) -> None:
    pairs = np.random.default_rng(0).integers(0, 3, (3, 2, 12, 15))
    np.save(tmp_path / "pairs.npy", pairs)
    torch.multiprocessing.start_processes(_evaluate_part, (str(tmp_path),), nprocs=2, start_method="fork")
    one = json.loads(json.dumps(evaluated([(found, truth) for found, truth in pairs], 3).to_dict()))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [one, one]


def test_evaluation_is_faster_than_the_smallest_network(unpack: Callable[..., Path]) -> None:
    """Image and label map of CamVid at the sizes of its recipe: input 240x180, labels 480x360."""
    path = min((unpack("camvid", mini=False) / "val" / "labels").glob("*.png"))
    truth = np.array(Image.open(path))
    found = np.where(truth == 11, 0, truth)
    evaluator = SegmentationEvaluator([str(index) for index in range(11)], 11)
    model, image = create_model("fishnet_nano").eval(), torch.zeros(1, 3, 180, 240)

    def shortest(work: Callable[[], object], times: int = 7) -> float:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    with torch.inference_mode():
        forward = shortest(lambda: model(image))
    # measured: 4.9 ms of 40 ms, on a CPU with AMX 9 ms of 17 ms
    assert shortest(lambda: evaluator.update(found, truth)) < forward
