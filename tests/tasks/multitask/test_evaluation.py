"""Figures of images with any subset of labels against definitions written apart, from answers near the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional

from fishnet.data.multitask.dataset import MultitaskDataset, collate
from fishnet.data.panoptic import PanopticMap, described
from fishnet.data.scenes import Scene, make_scene
from fishnet.models.heads.types import Answers
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.multitask.options import MultitaskOptions
from fishnet.tasks.multitask.task import MultitaskTask
from fishnet.tasks.multitask.training import MultitaskTraining
from tests.tasks.multitask import oracle
from tests.tasks.multitask.makers import partial_scenes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
VAL = ("irp", "i", "rp", "p", "irp", "iRp", "i", "r", "irp", "R", "rp", "ip") * 2
SIZE = 96
"""Side of the network's input; scenes have 64 pixels."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return partial_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": ("irp",) * 2, "val": VAL})


@pytest.fixture(scope="module")
def task(data: Path) -> MultitaskTask:
    settings = {"data": str(data), "model": "fishnet_nano", "size": SIZE, "longest": SIZE}
    card = MultitaskTraining(resolve(get_task("multitask"), "scratch_small", settings)).card()
    return MultitaskTask(card, MultitaskOptions(score=0.0))


def found_in(scene: Scene, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return detections near the digits of a scene, in pixels of the network's input, some wrong, some on nothing."""
    boxes, labels, masks = [], [], []
    for digit, mask in zip(scene.digits.tolist(), scene.masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        inside = torch.from_numpy(mask[box[1] : box[3], box[0] : box[2]]).float()
        masks.append(functional.interpolate(inside[None, None], (28, 28))[0])
        boxes.append(box * (SIZE / 64) + generator.normal(0, 0.8, 4))
        labels.append(digit if generator.random() < 0.85 else int(generator.integers(10)))
    for _ in range(3):
        corner = generator.uniform(0, 60, 2)
        boxes.append(np.concatenate([corner, corner + generator.uniform(8, 30, 2)]))
        labels.append(int(generator.integers(10)))
        masks.append(torch.ones(1, 28, 28))
    scores, order = torch.from_numpy(generator.uniform(0.3, 1, len(boxes))).float().sort(descending=True)
    corners = torch.from_numpy(np.stack(boxes)).float().clamp(0, SIZE)
    return {"boxes": corners[order], "labels": torch.tensor(labels)[order], "scores": scores,
            "masks": torch.stack(masks)[order]}  # fmt: skip


def answers_for(index: int) -> tuple[Scene, Answers]:
    """Return a scene, and what a network answers that is right most of the time."""
    scene, generator = make_scene(0, "val", index, 64), np.random.default_rng(index)
    logits = generator.normal(0, 2, 10)
    logits[scene.label] += 3
    one_hot = functional.one_hot(torch.from_numpy(scene.label_map).long(), 11).permute(2, 0, 1)[None].float()
    noise = torch.from_numpy(generator.normal(0, 0.6, (1, 11, 8, 8))).float()
    maps = functional.interpolate(one_hot * 2, (SIZE, SIZE)) + functional.interpolate(noise, (SIZE, SIZE))
    return scene, {"image": [torch.from_numpy(logits)], "region": [found_in(scene, generator)], "pixel": [maps[0]]}


@pytest.fixture(scope="module")
def judged(task: MultitaskTask, data: Path) -> tuple[Any, MultitaskDataset, list[tuple[str, Scene, Answers]]]:
    """Return evaluation, data set, and per image its levels, scene and answers; batches of five images."""
    dataset = task.open_split(data, "val")
    evaluator = task.evaluator(dataset, torch.device("cpu"))
    items = [(VAL[int(path.stem)], *answers_for(int(path.stem))) for path in dataset.split.paths]
    for start in range(0, len(dataset), 5):
        batch = collate([dataset[index] for index in range(start, min(start + 5, len(dataset)))])
        joined = {head: [one[2][head][0] for one in items[start : start + 5]] for head in ("image", "region", "pixel")}
        assert [tuple(image.shape) for image in task.network_inputs(batch)] == [(3, SIZE, SIZE)] * len(batch["image"])
        task.update(evaluator, joined, batch)
    return evaluator.compute(), dataset, items


def test_each_level_counts_its_labeled_images(judged: Any) -> None:
    found, dataset, items = judged
    counts = {name: one["images"] for name, one in found.to_dict()["heads"].items()}
    labeled = [known for known, _, _ in items]
    assert counts == {
        "image": sum("i" in known for known in labeled),
        "region": sum("r" in known or "R" in known for known in labeled),
        "pixel": sum("p" in known for known in labeled),
        "panoptic": sum("r" in known and "p" in known for known in labeled),  # R: other digits were not looked for
    }
    assert found.images == len(dataset) == len(VAL)


def test_the_class_of_an_image(judged: Any) -> None:
    found, _, items = judged
    hits = [int(answers["image"][0].argmax()) == scene.label for known, scene, answers in items if "i" in known]
    assert 0.3 < np.mean(hits) < 1
    assert found.metrics["top1"] == pytest.approx(np.mean(hits), abs=1e-12)


def test_objects(judged: Any, task: MultitaskTask) -> None:
    """Detections of categories that were not looked for in an image count as nothing."""
    found, dataset, items = judged
    path = dataset.split.regions[0].file.path
    truth = COCO(str(path))
    ids = {Path(one["file_name"]).stem: one["id"] for one in truth.dataset["images"]}
    for one in truth.dataset["annotations"]:
        one["segmentation"] = truth.annToRLE(one)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        results = []
        for place, (known, _, answers) in enumerate(items):
            if "r" not in known.lower():
                continue
            (answer,) = task.answer(lambda _, a=answers: a, [task.prepare(dataset.split.load(place)[0])])
            objects, raw = answer["region"], answers["region"][0]
            for number, label in enumerate(raw["labels"].tolist()):
                if "R" in known and label % 2:
                    continue
                x1, y1, x2, y2 = (raw["boxes"][number] * 64 / SIZE).tolist()
                results.append({
                    "image_id": ids[dataset.split.paths[place].stem], "category_id": label + 1,
                    "score": float(raw["scores"][number]), "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": objects["masks"][number],
                })  # fmt: skip
        kept = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
        wanted = [{key: one[key] for key in kept} for one in results]
        evaluation = COCOeval(truth, truth.loadRes(wanted), kind)
        evaluation.params.imgIds = sorted({one["image_id"] for one in results})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] > 0.1
        assert found.metrics[f"{name}_ap"] == pytest.approx(evaluation.stats[0], abs=1e-6)
        assert found.metrics[f"{name}_ap50"] == pytest.approx(evaluation.stats[1], abs=1e-6)


def test_label_maps(judged: Any) -> None:
    found, _, items = judged
    counts = np.zeros((11, 11), np.int64)
    for known, scene, answers in items:
        if "p" in known:
            logits = functional.interpolate(answers["pixel"][0][None], (64, 64), mode="bilinear")[0]
            np.add.at(counts, (scene.label_map, logits.argmax(0).numpy()), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    wanted = (counts.diagonal() / union)[union > 0].mean()
    assert 0.2 < wanted < 0.98
    assert found.metrics["miou"] == pytest.approx(wanted, abs=1e-12)


def true_map(scene: Scene) -> PanopticMap:
    """Return background as stuff of category 11, and each digit as a thing of its digit plus 1."""
    ids = np.ones((64, 64), np.int64)
    categories = {1: 11}
    for place, (digit, mask) in enumerate(zip(scene.digits.tolist(), scene.masks, strict=True), 2):
        ids[mask] = place
        categories[place] = digit + 1
    segments = [{"id": one, "category_id": categories[one]} for one in np.unique(ids).tolist()]
    return described(ids, segments, set(range(1, 12)))


def test_panoptic_maps(judged: Any, task: MultitaskTask) -> None:
    found, dataset, items = judged
    assert [one["name"] for one in task.categories] == [*map(str, range(10)), "background"]
    assert [one["isthing"] for one in task.categories] == [1] * 10 + [0]
    pairs = []
    for place, (known, scene, answers) in enumerate(items):
        if "r" in known and "p" in known:
            (answer,) = task.answer(lambda _, a=answers: a, [task.prepare(dataset.split.load(place)[0])])
            pairs.append((answer["panoptic"], true_map(scene)))
    for suffix, categories in (
        ("", task.categories),
        ("_things", task.categories[:10]),
        ("_stuff", task.categories[10:]),
    ):
        for name, value in oracle.quality(pairs, categories).items():
            assert found.metrics[name + suffix] == pytest.approx(value, abs=1e-9)
    assert 0.1 < found.metrics["pq"] < 0.99


def test_the_mean_of_levels_is_that_of_their_main_figures(judged: Any, task: MultitaskTask) -> None:
    found, _, _ = judged
    metrics = found.metrics
    wanted = math.fsum([metrics["top1"], metrics["mask_ap"], metrics["miou"]]) / 3
    assert metrics["mean_of_levels"] == pytest.approx(wanted, abs=1e-12)
    assert set(metrics) == set(task.metrics)
    (line,) = [line for line in task.describe(found) if "mean of levels" in line]
    for name in ("top1", "mask_ap", "miou"):
        assert f"{100 * metrics[name]:.2f} %" in line
