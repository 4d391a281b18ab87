"""The whole road of region level: data in, training, judging, predicting."""

from __future__ import annotations

import json
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
from fishnet.cards import HeadCard, ModelCard, read_card
from fishnet.commands.evaluate import evaluate
from fishnet.commands.predict import predict
from fishnet.commands.train import train
from fishnet.data.detection.coco import read_coco
from fishnet.errors import FishnetError, UsageError
from fishnet.loading import load_runtime
from fishnet.metrics import MetricsFile
from fishnet.models import create_model
from fishnet.models.build import Architecture
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.norms import SmallBatchWarning
from fishnet.runs import RunFolder
from fishnet.tasks import make_task
from fishnet.tasks.detection.tiles import merge_tiles, tile_places
from fishnet.tasks.detection.training import repeat_factors
from tests.models_on_disk import classifier_card, save_classifier
from tests.processes import assert_equal_runs

QUICK: dict[str, Any] = {
    "model": "fishnet_nano", "epochs": 1, "max_steps": 2, "batch_size": 2, "size": 64, "longest": 96, "workers": 0,
    "log_every": 1, "device": "cpu", "norm": "group", "augment": {"short_edges": [64], "scale_jitter": None},
    "heads": {"preset": "nano", "proposals": 40, "samples": 16, "score": 0.01},
}  # fmt: skip


def small(mini: Callable[[str], Path], folder: Path, count: int = 6) -> Path:
    """Return a folder with the first photos of Penn-Fudan."""
    source, root = mini("pennfudan"), folder / "data"
    for split in ("train", "val"):
        document = json.loads((source / "annotations" / f"instances_{split}.json").read_text("utf-8"))
        document["images"] = document["images"][:count]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).symlink_to(source / split)
    return root


@pytest.fixture(scope="module")
def data(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(mini, tmp_path_factory.mktemp("pennfudan"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    return train("detection", data=str(data), out=str(out), **{**QUICK, "max_steps": None})


def test_examples_are_titled_even_if_nothing_is_found(
    trained: RunFolder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[list[str]] = []

    def noted(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
        titles.append([title for title, _ in pictures])
        assert pictures[0][1].size == pictures[1][1].size == pictures[2][1].size
        assert (np.asarray(pictures[1][1]) != np.asarray(pictures[0][1])).any()
        assert np.asarray(pictures[2][1]).tolist() == np.asarray(pictures[0][1]).tolist()
        return pictures[0][1]

    monkeypatch.setattr("fishnet.drawing.sheets.titled_row", noted)
    runtime, card = load_runtime(trained.path)
    task = make_task(card, score=1.0)
    task.draw_examples(runtime, task.open_split(data, "val"), 2)
    assert len(titles) == 2
    for image, truth, prediction in titles:
        assert image == "image"
        assert truth.startswith("truth: ")
        assert prediction == "prediction: no object above 1"


def test_a_run_leaves_what_the_contract_names(trained: RunFolder) -> None:
    for path in (trained.config_yaml, trained.last, trained.best, trained.model_file, trained.report_html):
        assert path.stat().st_size > 0, path
    for name in ("train_batch.png", "predictions.png", "insides.png"):
        with Image.open(trained.path / name) as picture:
            assert min(picture.size) > 60
    rows = MetricsFile(trained.metrics_csv).read()
    names = {row["name"] for row in rows if row["split"] == "train"}
    assert {"loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "lr", "grad_norm"} <= names
    first = {row["name"]: float(row["value"]) for row in rows if row["step"] == "1" and row["split"] == "train"}
    parts = [value for name, value in first.items() if name.startswith("loss_")]
    assert sum(parts) == pytest.approx(first["loss"], rel=1e-5)
    assert {"box_ap", "mask_ap50"} <= {row["name"] for row in rows if row["split"] == "val"}
    card = read_card(trained.model_file)
    assert card is not None
    head = card.heads["region"]
    assert (card.task, head.classes, head.details["category_ids"]) == ("detection", ["person"], [1])


@pytest.mark.parametrize("frozen", [{"norm": "frozen"}, {"norm": "train", "freeze": ["stem", "tail"]}], ids=str)
@pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
def test_a_run_with_frozen_norms_resumes_bit_identical_inside_an_epoch(
    data: Path, nano_weights: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**QUICK, **frozen, "data": str(data), "max_steps": None, "ema": 0.9}
    settings["weights"] = str(nano_weights)
    straight = train("detection", **settings, out=str(tmp_path / "straight"))
    train("detection", **{**settings, "max_steps": 1}, out=str(tmp_path / "resumed"))
    resumed = train("detection", **settings, out=str(tmp_path / "resumed"), resume=True, allow_changes=True)
    assert_equal_runs(straight.path, resumed.path, steps=3)


def test_judging_gives_what_training_logged(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    # with the same batches: the scores of a network that has hardly learnt are so close that rounding reorders them
    found = evaluate(str(trained.path), str(data), out=str(tmp_path), workers=0, device="cpu", batch_size=2)
    rows = MetricsFile(trained.metrics_csv).read()
    logged = {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}
    assert found.metrics == pytest.approx(logged, abs=1e-6)
    results = json.loads((tmp_path / "coco_results_val.json").read_text("utf-8"))
    ids = read_coco(data / "annotations" / "instances_val.json").image_ids.tolist()
    assert {entry["image_id"] for entry in results} <= set(ids)
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(results[0])
    assert (tmp_path / "precision_recall_val.png").stat().st_size > 1000


def test_predicting_writes_boxes_masks_and_pictures(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    found = predict(str(trained.path), [str(data / "val")], str(tmp_path), score=0.011, max_detections=3, workers=0)
    files = sorted((data / "val").iterdir())
    assert [Path(entry["file"]).name for entry in found.images] == [file.name for file in files]
    assert len(found.pictures) == len(files)
    entry = next(entry for entry in found.images if entry["predictions"])
    assert len(entry["predictions"]) <= 3
    one = entry["predictions"][0]
    assert one["label"] == "person"
    assert one["mask"]["size"] == [entry["height"], entry["width"]]
    assert 0 <= one["box"][0] < one["box"][2] <= entry["width"] + 0.01
    assert found.document["box_format"].startswith("xyxy")
    with Image.open(files[found.images.index(entry)]) as photo:
        answer = Predictor(trained.path, device="cpu", score=0.011, max_detections=3)(photo)
    assert [one["box"] for one in entry["predictions"]] == [pytest.approx(box, abs=0.01) for box in answer["boxes"]]
    with Image.open(found.pictures[0]) as picture:
        assert picture.size == (found.images[0]["width"], found.images[0]["height"])


def test_the_parts_of_a_detector_serve_own_code(trained: RunFolder) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8))
    network, transform, classes, _ = fishnet.load(trained.path)
    assert classes == ["person"]
    seen = transform(photo)
    with torch.no_grad():
        found = network([seen])["region"][0]
    answer = Predictor(trained.path, device="cpu", score=0.0)(photo)
    assert answer["scores"] == pytest.approx(found["scores"].tolist())
    factor = torch.tensor([130 / seen.shape[2], 70 / seen.shape[1]] * 2)
    torch.testing.assert_close(torch.tensor(answer["boxes"]), found["boxes"] * factor)


def test_a_predictor_answers_with_boxes(trained: RunFolder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8)
    answer = Predictor(trained.path, device="cpu", score=0.0)(image)
    assert len({len(answer[name]) for name in ("labels", "scores", "indices", "boxes", "masks")}) == 1
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    with pytest.raises(UsageError, match=r"^top= is not an option of detection"):
        Predictor(trained.path, device="cpu", top=3)


def test_tiles_see_what_the_whole_sees(trained: RunFolder) -> None:
    image = np.random.default_rng(1).integers(0, 256, (96, 224, 3), dtype=np.uint8)
    answer = Predictor(trained.path, device="cpu", score=0.0, tile=96, overlap=0.25)(image)
    for box, mask in zip(answer["boxes"], answer["masks"], strict=True):
        assert list(mask["size"]) == [96, 224]
        assert 0 <= box[0] <= box[2] <= 224


@pytest.mark.parametrize(("size", "tile", "overlap", "count"), [
    ((100, 80), None, 0.2, 1), ((100, 80), 100, 0.2, 1), ((100, 80), 64, 0.25, 4), ((1000, 50), 64, 0.0, 16),
])  # fmt: skip
def test_tiles_cover_the_image(size: tuple[int, int], tile: int | None, overlap: float, count: int) -> None:
    places = tile_places(*size, tile, overlap)
    assert len(places) == count
    seen = np.zeros(size[::-1], dtype=bool)
    for left, top, right, bottom in places:
        seen[top:bottom, left:right] = True
        assert right <= size[0]
        assert bottom <= size[1]
    assert seen.all()


def test_pieces_of_an_object_at_the_border_of_a_tile_are_left_out() -> None:
    whole = {"boxes": torch.tensor([[10.0, 10, 90, 60]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    piece = {
        "boxes": torch.tensor([[64.0, 12, 91, 58], [64.0, 12, 91, 58], [70.0, 70, 90, 90]]),
        "labels": torch.tensor([0, 1, 0]), "scores": torch.tensor([0.8, 0.7, 0.6]),
    }  # fmt: skip
    merged = merge_tiles([whole, piece])
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_people_in_front_of_each_other_in_one_tile_both_stay() -> None:
    crowd = {
        "boxes": torch.tensor([[10.0, 10, 90, 60], [30.0, 12, 60, 58]]), "labels": torch.tensor([0, 0]),
        "scores": torch.tensor([0.9, 0.8]),
    }  # fmt: skip
    empty = {name: value[:0] for name, value in crowd.items()}
    assert merge_tiles([empty, crowd])["scores"].tolist() == pytest.approx([0.9, 0.8])


def test_images_of_rare_classes_are_repeated(mini: Callable[[str], Path]) -> None:
    file = read_coco(mini("coco") / "annotations" / "instances_train2017.json")
    factors = repeat_factors(file, 0.25)
    for image in range(len(file)):
        expected = 1.0
        for index in file.objects(image).tolist():
            label = file.class_of[index]
            holders = {int(file.image_of[i]) for i in range(len(file.class_of)) if file.class_of[i] == label}
            expected = max(expected, (0.25 / (len(holders) / len(file))) ** 0.5)
        assert factors[image] == pytest.approx(expected)


def spoil(data: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    root = folder / "spoilt"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        document = json.loads((data / "annotations" / f"instances_{split}.json").read_text("utf-8"))
        if split == "train":
            change(document)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).symlink_to((data / split).resolve())
    return root


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.update(annotations=[]), "no objects to train on"),
    (lambda d: [a.update(iscrowd=1) for a in d["annotations"]], "no objects to train on.*only crowds"),
    (lambda d: [a.update(bbox=[1, 1, 0, 5]) for a in d["annotations"]], "no objects to train on"),
    (lambda d: d["annotations"][0].update(bbox=[1, 1, -1, 5]), "1 problem: 1 x negative box"),
])  # fmt: skip
def test_data_that_teaches_nothing_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(FishnetError, match=message):
        train("detection", data=str(spoil(data, tmp_path, change)), out=str(tmp_path / "run"), **QUICK)


def test_categories_named_zero_and_images_without_objects_train(data: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        empty = document["images"][0]["id"]
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] != empty]
        for entry in (*document["annotations"], *document["categories"]):
            entry["category_id" if "bbox" in entry else "id"] = 0
        document["annotations"][0].pop("segmentation")

    root = spoil(data, tmp_path, change)
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text("utf-8"))
    for entry in (*document["annotations"], *document["categories"]):
        entry["category_id" if "bbox" in entry else "id"] = 0
    path.write_text(json.dumps(document))
    run = train("detection", data=str(root), out=str(tmp_path / "run"), **QUICK)
    card = read_card(run.model_file)
    assert card is not None
    assert card.heads["region"].details["category_ids"] == [0]


def test_keypoints_need_data_that_names_them(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match="has no keypoints"):
        train("detection", data=str(data), out=str(tmp_path / "run"), detector="keypoint_rcnn", **QUICK)


def test_small_batches_with_batch_norm_warn(data: Path, tmp_path: Path) -> None:
    with pytest.warns(SmallBatchWarning, match="2 images per device"):
        train("detection", data=str(data), out=str(tmp_path / "run"), **{**QUICK, "norm": "train"})


def test_odd_images_are_answered(trained: RunFolder, tmp_path: Path) -> None:
    Image.new("RGB", (10000, 40), "red").save(tmp_path / "panorama ö.jpg")
    Image.new("L", (33, 47), 90).save(tmp_path / "gray.png")
    Image.new("CMYK", (50, 50)).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    found = predict(str(trained.path), [str(tmp_path)], str(tmp_path / "out"), workers=0)
    assert len(found.images) == 4


def test_options_out_of_range() -> None:
    architecture = Architecture("fishnet_nano", {"region": RegionPlan("fcos", num_classes=1)})
    card = ModelCard("detection", architecture, {"region": HeadCard(["a"])}, size=64)
    for options in ({"score": 2.0}, {"max_detections": 0}, {"tile": 8}, {"overlap": 0.95}):
        with pytest.raises(UsageError, match="--"):
            make_task(card, **options)


@pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
def test_frozen_norms_of_the_trunk_stay_and_those_of_the_pyramid_train_also_after_a_resume(
    data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = create_model("fishnet_nano", num_classes=2)
    for name, value in start.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(value)
    save_classifier(tmp_path / "start.safetensors", start, classifier_card(["a", "b"]))
    options = {**QUICK, "norm": "frozen", "batch_size": 8, "weights": str(tmp_path / "start.safetensors")}
    options = {**options, "data": str(data), "out": str(tmp_path / "run"), "detector": "faster_rcnn", "max_steps": None}
    for epochs in (1, 2):
        run = train("detection", **{**options, "epochs": epochs}, resume=epochs == 2, allow_changes=epochs == 2)
        state, given = load_file(run.model_file), start.state_dict()
        inside = {key for key in state if "running_" in key and key.startswith("trunk.")}
        fresh = {key for key in state if "running_" in key} - inside
        assert len(fresh) == 8
        assert len(inside) > 50
        assert all(torch.equal(state[key], given[key.removeprefix("trunk.")]) for key in inside)
        last = torch.load(run.last, weights_only=True)["state_dict"]
        steps = {int(value) for key, value in last.items() if "necks.region.norms." in key and "num_batches" in key}
        assert steps == {epochs}


def test_frozen_norms_without_weights_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"--norm frozen freezes BatchNorms that were loaded from weights, and no weights are loaded: add --w",
    ):
        train("detection", data=str(data), out=str(tmp_path / "run"), **{**QUICK, "norm": "frozen"})


def test_a_classifier_with_group_norms_starts_a_detector_with_group_norms(data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for index, place in enumerate(
        f"{split}/{name}/{n}.png" for split in ("train", "val") for name in "ab" for n in "12"
    ):
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * index, 90, 0)).save(photos / place)
    quick = {"model": "fishnet_nano", "size": 32, "epochs": 1, "max_steps": 1, "batch_size": 4, "workers": 0}
    common = {**quick, "model_option": {"stem_stride": 2}, "device": "cpu", "data": str(photos)}
    first = train("classification", out=str(tmp_path / "first"), norm="group", **common)
    second = train("classification", out=str(tmp_path / "second"), weights=str(first.path), norm="group", **common)
    options = {**QUICK, "weights": str(second.path), "model_option": {"stem_stride": 2}, "data": str(data)}
    run = train("detection", out=str(tmp_path / "run"), **{**options, "lr": 1e-9, "detector": "faster_rcnn"})
    given, state = load_file(second.model_file), load_file(run.model_file)
    names = [key for key in given if key.startswith("trunk.") and "norm1." in key and key in state]
    assert len(names) > 20
    for key in names:
        torch.testing.assert_close(state[key], given[key], rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="has group norms in place of BatchNorms: add --norm group"):
        train("detection", out=str(tmp_path / "other"), **{**options, "norm": "train"})


@pytest.mark.parametrize(
    ("change", "says"), [("", ""), ("checkpoint", ""), ("classes", "its classes differ"), ("kind", "it is a mask_rcnn")]
)
def test_a_detector_starts_another(
    trained: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, says: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root, symlinks=True)
    if change == "classes":
        for file in (root / "annotations").iterdir():
            document = json.loads(file.read_text())
            document["categories"][0]["name"] = "somebody"
            file.write_text(json.dumps(document))
    detector = "faster_rcnn" if change == "kind" else "mask_rcnn"
    settings = {**QUICK, "max_steps": 1, "lr": 1e-12, "detector": detector, "seed": 9}
    run = train(
        "detection",
        data=str(root),
        out=str(tmp_path / "run"),
        weights=trained.best if change == "checkpoint" else trained.path,
        **settings,
    )
    told = capsys.readouterr().out
    before, after = load_file(trained.model_file), load_file(run.model_file)
    kept = {key for key in after if key in before and torch.allclose(after[key], before[key], rtol=0, atol=1e-7)}
    changed = {key for key in after if key not in kept}
    if says:
        assert changed
        assert all(key.startswith("heads.region.") for key in changed)
        assert "region: trunk and neck from" in told
        assert f"the head is initialized randomly: {says}" in told
    else:
        assert not changed
        assert "region: trunk and neck and head from" in told


@pytest.mark.parametrize("factor", [3, 0.5])
def test_another_size_scales_both_bounds(trained: RunFolder, data: Path, factor: float) -> None:
    wide = Image.new("RGB", (400, 200))
    level = Predictor(trained.path, device="cpu").task
    other = Predictor(trained.path, device="cpu", size=round(64 * factor)).task
    (tile,), (scaled,) = level.prepare(wide).tiles, other.prepare(wide).tiles
    assert tuple(tile.pixels.shape) == (3, 48, 96)  # the longer side is at its bound
    assert tuple(scaled.pixels.shape) == (3, 48 * factor, 96 * factor)
    judged, again = (made.open_split(data, "val", "stop")[0]["image"] for made in (level, other))
    assert max(again.shape) == pytest.approx(factor * max(judged.shape), abs=1)


def test_only_metrics_that_the_detector_has_decide_on_the_best_epoch(data: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "data": str(data), "out": str(tmp_path / "run")}
    with pytest.raises(UsageError, match=r"the validation does not compute 'mask_ap'.* Metrics: box_ap, "):
        train("detection", **{**settings, "detector": "faster_rcnn", "best": "mask_ap"})
    assert not (tmp_path / "run").exists()


def test_the_announced_metrics_are_those_of_an_evaluation(trained: RunFolder, data: Path) -> None:
    found = json.loads(trained.evaluation_json().read_text())
    assert list(found["metrics"]) == list(Predictor(trained.path, device="cpu").task.metrics)
