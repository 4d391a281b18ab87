"""Panoptic quality and merge against definitions written apart, with void, crowds and absent categories."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.data import run_lengths
from fishnet.data.detection.coco import read_coco
from fishnet.data.panoptic import Category, PanopticMap, described
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.multitask.panoptic import DISPLAY, METRICS, MergeOptions, PanopticEvaluator, merge, true_map
from tests.tasks.multitask import oracle

CATEGORIES: list[Category] = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 9, "name": "bird", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 21, "name": "grass", "isthing": 0},
]
KNOWN = {one["id"] for one in CATEGORIES}


def segmented(ids: np.ndarray, categories: dict[int, int], crowds: frozenset[int] = frozenset()) -> PanopticMap:
    seen = [number for number in np.unique(ids).tolist() if number]
    segments = [{"id": one, "category_id": categories[one], "iscrowd": int(one in crowds)} for one in seen]
    return described(ids, segments, KNOWN)


def random_map(generator: np.random.Generator, crowd: bool) -> PanopticMap:
    """Return rectangles on void or stuff, without birds; ids are large and in no order."""
    ids = np.zeros((40, 50), np.int64)
    numbers = generator.choice(2**24 - 1, 12, replace=False) + 1
    categories: dict[int, int] = {}
    for place, number in enumerate(numbers.tolist()):
        y, x = generator.integers(36), generator.integers(46)
        ids[y : y + generator.integers(3, 25), x : x + generator.integers(3, 25)] = number
        categories[number] = int(generator.choice([3, 7]) if place > 3 else generator.choice([20, 21]))
    crowds = frozenset(numbers[10:].tolist()) if crowd else frozenset()
    return segmented(ids, categories, crowds)


def perturbed(generator: np.random.Generator, truth: PanopticMap) -> PanopticMap:
    """Return a shifted truth with renumbered segments, some of another category, some lost, some on void."""
    ids = np.roll(truth.ids, generator.integers(-2, 3, 2), (0, 1)).astype(np.int64)
    categories: dict[int, int] = {}
    for place, segment in enumerate(truth.segments):
        number, draw = 1000 + place, generator.random()
        ids[ids == segment["id"]] = 0 if draw < 0.1 else number
        categories[number] = 7 if draw > 0.9 else segment["category_id"]
    ids[:4, :9], categories[5] = 5, 3
    return segmented(ids, categories)


def compare(pairs: list[oracle.Pair]) -> dict[str, float]:
    evaluator = PanopticEvaluator(CATEGORIES)
    for found, truth in pairs:
        evaluator.update(found, truth)
    evaluation = evaluator.compute()
    things, stuff = ([one for one in CATEGORIES if one["isthing"] == kind] for kind in (1, 0))
    assert set(evaluation.metrics) == set(METRICS)
    for part, chosen in (("", CATEGORIES), ("_things", things), ("_stuff", stuff)):
        for name, value in oracle.quality(pairs, chosen).items():
            assert evaluation.metrics[name + part] == pytest.approx(value, abs=1e-9), name + part
    for category, row in zip(CATEGORIES, evaluation.per_class, strict=True):
        matches, extra, missed = oracle.counts(pairs, category["id"])
        assert [row["tp"], row["fp"], row["fn"]] == [len(matches), extra, missed]
    assert evaluation.images == len(pairs)
    return evaluation.metrics


@pytest.mark.parametrize("seed", range(6))
def test_random_maps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truths = [random_map(generator, crowd=image % 2 == 0) for image in range(6)]
    assert any((truth.ids == 0).any() for truth in truths)
    pairs = [(perturbed(generator, truth), truth) for truth in truths]
    assert 0.1 < compare(pairs)["pq"] < 0.9


def test_nothing_predicted_and_nothing_true() -> None:
    truth = random_map(np.random.default_rng(0), crowd=True)
    empty = PanopticMap(np.zeros_like(truth.ids), [])
    assert compare([(empty, truth)])["pq"] == 0
    assert set(compare([(truth, empty)]).values()) == {-1.0}  # all of it lies in void
    assert set(compare([(empty, empty)]).values()) == {-1.0}
    perfect = described(truth.ids, [{**one, "iscrowd": 0} for one in truth.segments], KNOWN)
    metrics = compare([(perfect, perfect)])
    assert metrics["pq"] == metrics["sq"] == metrics["rq_stuff"] == 1


def one_row(found: list[int], truth: list[int], crowds: frozenset[int] = frozenset()) -> dict[str, float]:
    """Compare maps of one row of pixels; segment 1 is a cat, 2 a dog, 3 sky, 4 a cat."""
    categories = {1: 3, 2: 7, 3: 20, 4: 3}
    pair = (segmented(np.array([found]), categories), segmented(np.array([truth]), categories, crowds))
    return compare([pair])


def test_rules_one_by_one() -> None:
    # void inside the prediction is not part of the union: 2 of 2 instead of 2 of 4
    assert one_row([1, 1, 1, 1], [1, 1, 0, 0])["pq_things"] == 1
    # an IoU of exactly 0.5 is no match
    assert one_row([1, 1, 0, 0], [1, 1, 1, 1])["pq_things"] == 0
    # half in void is wrong, more than half is not judged
    assert one_row([1, 1, 0], [0, 3, 3])["pq_things"] == 0
    assert one_row([1, 1, 1, 0], [0, 0, 3, 3])["pq_things"] == -1
    # a crowd excuses its own category only, and is never missed
    assert one_row([1, 1, 1, 0], [4, 4, 3, 3], frozenset({4}))["pq_things"] == -1
    assert one_row([2, 2, 2, 0], [4, 4, 3, 3], frozenset({4}))["pq_things"] == 0
    assert one_row([0, 0, 0, 0], [4, 4, 3, 3], frozenset({4}))["pq_things"] == -1
    # a prediction that equals a crowd is no match either
    assert one_row([1, 1, 3, 3], [4, 4, 3, 3], frozenset({4}))["pq"] == 1


def test_two_crowds_and_void_together() -> None:
    ids = np.array([[5, 6, 0, 3, 3]])
    truth = segmented(ids, {5: 3, 6: 3, 3: 20}, frozenset({5, 6}))
    found = segmented(np.array([[1, 1, 1, 1, 1]]), {1: 3})
    assert compare([(found, truth)])["pq_things"] == -1


def annotations(folder: Path) -> list[PanopticMap]:
    """Return the true maps of pets3: the animal is a thing (cat), the background stuff (sky)."""
    file = read_coco(folder / "annotations" / "instances_val.json")
    maps = []
    for image in range(8):
        labels = np.array(Image.open(folder / "val" / "labels" / f"{Path(file.file_names[image]).stem}.png"))
        objects = file.objects(image).tolist()
        masks = [file.mask(index) for index in objects]
        maps.append(true_map(masks, [3] * len(objects), [False] * len(objects), labels, {0: 20}))
    return maps


def test_pets(mini: Callable[[str], Path]) -> None:
    truths = annotations(mini("pets3"))
    assert all(sorted(one["category_id"] for one in truth.segments) == [3, 20] for truth in truths)
    assert all((truth.ids == 0).mean() > 0.01 for truth in truths)  # the border between animal and background
    generator = np.random.default_rng(0)
    metrics = compare([(perturbed(generator, truth), truth) for truth in truths])
    assert 0.1 < metrics["pq"] < 0.99
    assert compare([(truth, truth) for truth in truths])["pq"] == 1


def naive_merge(masks: np.ndarray, scores: np.ndarray, categories: list[int], labels: np.ndarray) -> np.ndarray:
    """Return the category of every pixel by the rules of the paper, one pixel at a time where it matters."""
    result = np.zeros(labels.shape, int)
    for place in sorted(range(len(masks)), key=lambda place: -scores[place]):
        if scores[place] < 0.5:
            continue
        visible = [(y, x) for y, x in zip(*np.nonzero(masks[place]), strict=True) if result[y, x] == 0]
        if visible and len(visible) / masks[place].sum() >= 0.5:
            for spot in visible:
                result[spot] = categories[place]
    for index, category in ((0, 20), (2, 21)):
        region = (labels == index) & (result == 0)
        if region.sum() >= 0.1 * labels.size:
            result[region] = category
    return result


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_merge_follows_the_paper(seed: int, encoded: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = np.kron(generator.integers(0, 3, (2, 3)), np.ones((15, 12), int))
    masks = np.zeros((7, 30, 36), bool)
    for mask in masks[1:]:  # the first has no pixel
        y, x = generator.integers(24), generator.integers(30)
        mask[y : y + generator.integers(2, 20), x : x + generator.integers(2, 20)] = True
    scores = generator.random(7).round(3)
    categories = generator.choice([3, 7], 7).tolist()
    given = run_lengths.encode(torch.from_numpy(masks)) if encoded else torch.from_numpy(masks)
    found = merge(given, torch.from_numpy(scores), categories, labels, {0: 20, 2: 21}, MergeOptions(stuff=0.1))
    of_segment = {0: 0, **{one["id"]: one["category_id"] for one in found.segments}}
    shown = np.vectorize(of_segment.get)(found.ids)
    assert np.array_equal(shown, naive_merge(masks, scores, categories, labels))
    assert [one["id"] for one in found.segments] == list(range(1, len(found.segments) + 1))
    for one in found.segments:
        assert one["area"] == (found.ids == one["id"]).sum()


def test_merge_at_its_thresholds() -> None:
    labels = np.ones((4, 10), np.uint8)
    labels[:, 8:] = 2
    masks = np.zeros((3, 4, 10), bool)
    masks[0, :, :4] = masks[1, :, 2:6] = masks[2, :, 3:7] = True  # half of the second, all but one of the third hidden
    found = merge(masks, [0.9, 0.5, 0.49], [3, 3, 3], labels, {2: 20}, MergeOptions(stuff=0.2))
    assert [one["area"] for one in found.segments] == [16, 8, 8]
    assert [one["bbox"] for one in found.segments] == [[0, 0, 4, 4], [4, 0, 2, 4], [8, 0, 2, 4]]
    fewer = merge(masks, [0.9, 0.5, 0.49], [3, 3, 3], labels, {2: 20}, MergeOptions(overlap=0.4, stuff=0.21))
    assert [one["category_id"] for one in fewer.segments] == [3]
    assert merge(masks[:0], [], [], labels, {}).segments == []
    assert len(merge(masks, [float("nan"), 0.9, 0.1], [3, 3, 3], labels, {}).segments) == 1


def test_merge_refuses_what_does_not_fit() -> None:
    labels = np.zeros((4, 10), np.uint8)
    with pytest.raises(FishnetError, match=r"2 scores .* but 0 masks: .* use a detector with masks"):
        merge([], [0.5, 0.6], [1, 1], labels, {})
    wrong = run_lengths.encode(torch.ones(1, 5, 10, dtype=torch.uint8))
    with pytest.raises(FishnetError, match="a mask has 10x5 pixels, but the label map 10x4"):
        merge(wrong, [0.9], [1], labels, {})
    with pytest.raises(UsageError, match=r"panoptic.overlap must be between 0 and 1"):
        MergeOptions(overlap=1.5)


def test_true_map_puts_small_instances_in_front_and_keeps_crowds() -> None:
    labels = np.array([[0, 0, 1, 1, 1, 255, 255, 255]])
    masks = np.array([[[0, 0, 1, 1, 1, 1, 0, 0]], [[0, 0, 0, 1, 0, 0, 0, 0]], [[0, 0, 0, 0, 0, 0, 1, 1]]])
    truth = true_map(masks, [3, 7, 3], [False, False, True], labels, {0: 20})
    names = {one["id"]: (one["category_id"], one["iscrowd"]) for one in truth.segments}
    assert [names.get(number) for number in truth.ids[0].tolist()] == [
        (20, 0), (20, 0), (3, 0), (7, 0), (3, 0), None, (3, 1), (3, 1),
    ]  # fmt: skip


def test_evaluator_refuses_what_cannot_be_compared() -> None:
    one = PanopticMap(np.zeros((4, 5), int), [])
    with pytest.raises(FishnetError, match=r"4x5 pixels .* truth 5x4"):
        PanopticEvaluator(CATEGORIES).update(one, PanopticMap(np.zeros((5, 4), int), []))
    odd = PanopticMap(np.ones((4, 5), int), [{"id": 1, "category_id": 99, "area": 20, "bbox": [], "iscrowd": 0}])
    with pytest.raises(FishnetError, match="unknown category 99"):
        PanopticEvaluator(CATEGORIES).update(odd, one)
    with pytest.raises(FishnetError, match="no image was evaluated"):
        PanopticEvaluator(CATEGORIES).compute()


def test_the_result_is_shown() -> None:
    truth = random_map(np.random.default_rng(0), crowd=False)
    evaluator = PanopticEvaluator(CATEGORIES)
    evaluator.update(truth, truth)
    stored = json.loads(json.dumps(evaluator.compute().to_dict()))
    (section,) = DISPLAY.sections(stored)
    assert section.content.rows[2] == ["bird", "thing", 0, 0, 0, None, None, None]
    assert DISPLAY.title("pq") == "PQ"
    assert DISPLAY.title("sq_things") == "SQ things"
    assert DISPLAY.primary_of(stored["metrics"]) == "pq"


def _evaluate_part(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluator = PanopticEvaluator(CATEGORIES)
    for found, truth in _pairs()[rank::2]:
        evaluator.update(found, truth)
    Path(folder, f"{rank}.json").write_text(json.dumps(evaluator.compute().to_dict()))
    torch.distributed.destroy_process_group()


def _pairs() -> list[oracle.Pair]:
    generator = np.random.default_rng(8)
    return [(perturbed(generator, truth), truth) for truth in (random_map(generator, crowd=True) for _ in range(3))]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(120)
def test_two_processes_have_the_result_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_evaluate_part, (str(tmp_path),), nprocs=2, start_method="fork")
    expected = compare(_pairs())
    for rank in (0, 1):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["metrics"] == pytest.approx(expected, abs=1e-12)
        assert result["images"] == 3
