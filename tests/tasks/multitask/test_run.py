"""The whole way of networks for several levels: data, training, evaluation, prediction."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fishnet
from fishnet import Predictor
from fishnet.cards import read_card
from fishnet.commands.evaluate import evaluate
from fishnet.commands.predict import predict
from fishnet.commands.train import train
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.panoptic import read_panoptic
from fishnet.errors import FishnetError, UsageError
from fishnet.metrics import MetricsFile
from fishnet.recipes import list_recipes
from fishnet.runs import RunFolder
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.base import TorchRuntime
from fishnet.tasks.detection.evaluator import evaluate_detections
from fishnet.tasks.multitask.options import MultitaskOptions
from fishnet.tasks.multitask.panoptic import true_map
from fishnet.tasks.multitask.task import MultitaskTask
from tests.processes import assert_equal_runs
from tests.tasks.multitask.makers import partial_scenes
from tests.tasks.multitask.oracle import quality

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
QUICK: dict[str, Any] = {
    "model": "fishnet_nano", "epochs": 1, "batch_size": 4, "size": 64, "longest": 96, "workers": 0, "log_every": 1,
    "device": "cpu", "norm": "group", "augment": {"scale_jitter": [0.8, 1.25]},
    "heads": {"preset": "nano", "proposals": 40, "samples": 16, "score": 0.01, "detections": 12},
}  # fmt: skip
TRAIN = ("irp", "ip", "irp", "r", "p", "irp", "i", "irp")
VAL = ("irp", "rp", "p", "irp", "i", "R")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return partial_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": TRAIN, "val": VAL})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train("multitask", data=str(data), out=str(tmp_path_factory.mktemp("run") / "run"), **QUICK)


def task_of(run: RunFolder, **options: Any) -> MultitaskTask:
    card = read_card(run.model_file)
    assert card is not None
    return MultitaskTask(card, MultitaskOptions(**options))


def test_a_run_leaves_what_the_contract_names(trained: RunFolder) -> None:
    for path in (trained.config_yaml, trained.last, trained.best, trained.model_file, trained.report_html):
        assert path.stat().st_size > 0, path
    for name in ("train_batch.png", "predictions.png", "insides.png"):
        with Image.open(trained.path / name) as picture:
            assert min(picture.size) > 60
    rows = MetricsFile(trained.metrics_csv).read()
    first = {row["name"]: float(row["value"]) for row in rows if row["step"] == "1" and row["split"] == "train"}
    assert {"image_loss", "region_loss_mask", "pixel_loss_cross_entropy"} <= first.keys()
    assert sum(value for name, value in first.items() if "_loss" in name) == pytest.approx(first["loss"], rel=1e-5)
    assert all(first[f"grad_norm_{level}"] > 0 for level in ("image", "region", "pixel"))
    judged = {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}
    assert set(judged) == set(task_of(trained).metrics)
    assert judged["mean_of_levels"] == pytest.approx((judged["top1"] + judged["mask_ap"] + judged["miou"]) / 3)
    assert "panoptic" in trained.report_html.read_text("utf-8")


def test_the_levels_are_evaluated_as_their_own_definitions_say(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    found = evaluate(str(trained.path), out=str(tmp_path / "e"), workers=0, device="cpu", batch_size=2)
    rows = MetricsFile(trained.metrics_csv).read()
    logged = {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}
    assert found.metrics == pytest.approx(logged, abs=1e-6)
    out = tmp_path / "p"
    made = predict(
        str(trained.path), [str(data / "val" / "images")], str(out), workers=0, batch_size=2, score=0.9, device="cpu"
    )
    entries = {Path(entry["file"]).name: entry for entry in made.images}
    split = open_multitask(data, "val")
    names = [path.name for path in split.paths]
    # classes of the images that have one
    guessed = [entries[n]["image"][0]["index"] == int(c) for n, c in zip(names, split.labels, strict=True) if c >= 0]
    assert found.metrics["top1"] == pytest.approx(np.mean(guessed))
    # pixels of the images with a label map
    counts = np.zeros((11, 11), np.int64)
    for name in names:
        path = data / "val" / "labels" / f"{Path(name).stem}.png"
        if path.exists():
            truth, mine = np.array(Image.open(path)), np.array(Image.open(out / "labels" / path.name))
            np.add.at(counts, (truth, mine), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert found.metrics["miou"] == pytest.approx((counts.diagonal()[union > 0] / union[union > 0]).mean(), abs=1e-12)
    # objects of the images in which they are labeled, only of the categories that were looked for
    file = split.regions[0].file
    results = json.loads((tmp_path / "e" / "coco_results_val.json").read_text("utf-8"))
    partly = {int(file.image_ids[place]): {int(file.category_ids[c]) for c in c} for place, c in file.annotated.items()}
    assert partly
    assert all(one["category_id"] in partly.get(one["image_id"], {one["category_id"]}) for one in results)
    by_image = {place: [one for one in results if one["image_id"] == i] for place, i in enumerate(file.image_ids)}
    again = evaluate_detections(file, by_image, ("box", "mask"))
    assert found.metrics["mask_ap50"] == pytest.approx(again.metrics["mask_ap50"])


def test_panoptic_quality_is_that_of_the_files_that_predict_writes(
    trained: RunFolder, data: Path, tmp_path: Path
) -> None:
    # what objects are named does not change the maps
    loose = {"panoptic": {"score": 0.01, "stuff": 0.0}, "score": 0.9, "max_detections": 1}
    predict(str(trained.path), [str(data / "val" / "images")], str(tmp_path / "p"), workers=0, device="cpu", **loose)
    found = evaluate(str(trained.path), out=str(tmp_path / "e"), workers=0, device="cpu", panoptic=loose["panoptic"])
    written = read_panoptic(tmp_path / "p" / "panoptic.json")
    task, split = task_of(trained), open_multitask(data, "val")
    pairs = []
    for index, path in enumerate(split.paths):
        _, labels = split.load(index)
        if labels.objects is None or labels.label_map is None:
            continue
        place = [image.file_name for image in written.images].index(path.name)
        objects = labels.objects
        ids = (objects.classes + 1).tolist()
        truth = true_map(objects.masks or [], ids, objects.crowd.tolist(), labels.label_map, task.stuff)
        pairs.append((written.read(place), truth))
    assert len(pairs) == 3
    assert sum(one["category_id"] <= 10 for found, _ in pairs for one in found.segments) > 0, "no objects in the maps"
    expected = quality(pairs, task.categories)
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_lines_name_the_levels_and_no_pictures_are_counted_without_pictures(
    trained: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(data / "val" / "images")
    predict(
        str(trained.path), [folder], str(tmp_path / "p"), workers=0, device="cpu", pictures=False, score=0.0,
        max_detections=3,
    )  # fmt: skip
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert re.search(r"\.png: image: \S+ [0-9.]+ %, .*; objects: \S+ x[123].*; pixels: \S+ \d+ %", lines[0])
    assert last.endswith("panoptic.json")


def test_a_predictor_answers_on_all_levels(trained: RunFolder) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    answer = Predictor(trained.path, device="cpu", score=0.0, max_detections=3, top=2)(photo)
    assert len(answer["image"]["labels"]) == 2
    assert len(answer["region"]["boxes"]) == len(answer["region"]["masks"]) == 3
    assert answer["pixel"]["label_map"].shape == answer["panoptic"].ids.shape == (70, 90)
    network, transform, _, card = fishnet.load(trained.path)
    assert set(card.classes) == {"image", "region", "pixel"}
    with torch.no_grad():
        found = network([transform(photo)])
    best = found["image"][0].softmax(0).max()
    assert answer["image"]["scores"][0] == pytest.approx(float(best), abs=1e-6)


def test_the_trunk_runs_once(trained: RunFolder) -> None:
    network, *_ = fishnet.load(trained.path)
    calls: list[int] = []
    network.trunk.register_forward_hook(lambda *_: calls.append(1))
    photo = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    task = task_of(trained)
    task.answer(TorchRuntime(network, torch.device("cpu")), [task.prepare(photo)])
    assert len(calls) == 1


def test_learned_weights_move_are_saved_and_resume(data: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "data": str(data), "max_steps": None, "weighting": "uncertainty", "lr": 0.01}
    straight = train("multitask", **settings, out=str(tmp_path / "straight"))
    train("multitask", **{**settings, "max_steps": 1}, out=str(tmp_path / "resumed"))
    resumed = train("multitask", **settings, out=str(tmp_path / "resumed"), resume=True, allow_changes=True)
    assert_equal_runs(straight.path, resumed.path, steps=2)
    state = load_file(straight.model_file)
    assert all(state[f"log_variances.{level}"] != 0 for level in ("image", "region", "pixel"))
    Predictor(straight.path, device="cpu")(Image.new("RGB", (64, 64)))


def test_the_trunk_comes_from_and_goes_to_single_tasks(
    trained: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still: dict[str, Any] = {"max_steps": 1, "lr": 1e-12, "weights": str(trained.path)}
    before = load_file(trained.model_file)
    heads = {"heads": QUICK["heads"]}
    plain = {name: value for name, value in QUICK.items() if name not in ("heads", "augment")}
    runs = {
        "detection": train("detection", data=str(data), out=str(tmp_path / "d"), **plain, **heads, **still),
        "segmentation": train(
            "segmentation", data=str(data), out=str(tmp_path / "s"), **plain, **still, augment={"crop": [64, 64]}
        ),
    }
    said = capsys.readouterr().out
    assert f"region: trunk and neck and head from {trained.model_file}" in said
    assert f"pixel: trunk and head from {trained.model_file}" in said
    for run in runs.values():
        after = load_file(run.model_file)
        shared = [name for name in after if name in before and after[name].is_floating_point()]
        assert len(shared) > 100
        assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in shared)
    still |= {"weights": str(runs["detection"].path), "recipe": "scratch_small"}
    back = train("multitask", data=str(data), out=str(tmp_path / "back"), **QUICK, **still)
    after = load_file(back.model_file)
    given = load_file(runs["detection"].model_file)  # without the score, which only classes of images need
    trunk = [name for name in given if name.startswith("trunk.") and given[name].is_floating_point()]
    assert len(trunk) > 100
    assert all(torch.allclose(after[name], given[name], atol=1e-6) for name in trunk)


def test_single_task_folders_are_named_together(data: Path, mini: Callable[[str], Path], tmp_path: Path) -> None:
    sources = f"image={mini('cifar10')} region={mini('pennfudan')},pixel={data}"
    run = train("multitask", data=sources, out=str(tmp_path / "run"), **{**QUICK, "max_steps": 2, "quota": 0.25})
    rows = MetricsFile(run.metrics_csv).read()
    first = {row["name"] for row in rows if row["step"] == "1" and row["split"] == "train"}
    assert {"image_loss", "region_loss_classifier", "pixel_loss_cross_entropy"} <= first


@pytest.mark.parametrize("name", list_recipes(get_task("multitask")))
def test_recipes_are_settings(name: str) -> None:
    weights = resolve(get_task("multitask"), name, {"data": "x"}).loss_weights
    assert (weights.image, weights.region, weights.pixel) == (1.0, 1.0, 2.0 if name == "scenes" else 0.5)


def without(data: Path, root: Path, level: str) -> Path:
    """Return a copy of a folder without the labels of a level in val."""
    shutil.copytree(data, root)
    if level == "pixel":
        shutil.rmtree(root / "val" / "labels")
        return root
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text("utf-8"))
    for image in document["images"]:
        if level == "image":
            image.pop("label", None)
        else:
            image["annotated_category_ids"] = []
    path.write_text(json.dumps(document))
    return root


@pytest.mark.parametrize("level", ["image", "region", "pixel"])
def test_a_level_that_no_image_has_is_an_error(data: Path, tmp_path: Path, level: str) -> None:
    root = without(data, tmp_path / "data", level)
    with pytest.raises(FishnetError, match=rf"no image of split 'val' has labels of the {level} level") as raised:
        train("multitask", data=str(root), out=str(tmp_path / "run"), **QUICK)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stuff": ["sky"]}, "stuff: label maps have no class 'sky'"),
        ({"detector": "keypoint_rcnn"}, "keypoints are not a level"),
        ({"pixel": {"decoder": "fishs"}}, "unknown decoder 'fishs'"),
        ({"augment": {"scale_jitter": [2.0, 1.0]}}, "augment.scale_jitter must be a range"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train("multitask", data=str(data), out=str(tmp_path / "run"), **{**QUICK, **settings})
    assert not (tmp_path / "run").exists()


def test_class_lists_that_differ_are_refused(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text("utf-8"))
    document["categories"][0]["name"] = "nought"
    path.write_text(json.dumps(document))
    with pytest.raises(FishnetError, match=r"classes of the region level differ.*only in .*nought"):
        evaluate(str(trained.path), str(root), workers=0, device="cpu")
