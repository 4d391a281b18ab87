"""The whole way of the pixel level: data, training, evaluation, prediction."""

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

import fishnet
from fishnet import Predictor
from fishnet.cards import read_card
from fishnet.commands.evaluate import evaluate
from fishnet.commands.predict import predict
from fishnet.commands.train import train
from fishnet.config import OptimConfig
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.data.segmentation.transforms import RandomScale
from fishnet.errors import FishnetError, UsageError
from fishnet.metrics import MetricsFile
from fishnet.recipes import list_recipes
from fishnet.runs import RunFolder
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.segmentation.options import SegmentationOptions
from fishnet.training.optimizer import lr_share
from tests.processes import assert_equal_runs

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
QUICK: dict[str, Any] = {
    "model": "fishnet_nano", "epochs": 1, "batch_size": 2, "size": 64, "workers": 0, "log_every": 1, "device": "cpu",
    "augment": {"crop": [48, 64]},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six photos of CamVid per split, those of val of odd size."""
    source, root = mini("camvid"), tmp_path_factory.mktemp("camvid") / "data"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
            for path in sorted((source / split / kind).iterdir())[:6]:
                with Image.open(path) as image:
                    small = image.crop((0, 0, 201, 133)) if split == "val" else image.crop((100, 100, 340, 280))
                    small.save(root / split / kind / f"{path.stem}.png")
    shutil.copy(source / "classes.json", root)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train("segmentation", data=str(data), out=str(tmp_path_factory.mktemp("run") / "run"), **QUICK)


def test_a_run_leaves_what_the_contract_names(trained: RunFolder, data: Path) -> None:
    for path in (trained.config_yaml, trained.last, trained.best, trained.model_file, trained.report_html):
        assert path.stat().st_size > 0, path
    for name in ("train_batch.png", "predictions.png", "insides.png"):
        with Image.open(trained.path / name) as picture:
            assert min(picture.size) > 60
    rows = MetricsFile(trained.metrics_csv).read()
    first = {row["name"]: float(row["value"]) for row in rows if row["step"] == "1" and row["split"] == "train"}
    assert first["loss"] == pytest.approx(np.log(11), abs=1)  # one loss has no parts
    judged = {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}
    assert set(judged) == set(trained_task(trained).metrics)
    assert 0 <= judged["miou"] <= judged["mean_accuracy"] <= 1
    card = read_card(trained.model_file)
    assert card is not None
    classes = json.loads((data / "classes.json").read_text("utf-8"))["classes"]
    assert (card.task, card.heads["pixel"].classes) == ("segmentation", classes)
    assert card.heads["pixel"].details["coding"]["classes"] == classes


def trained_task(run: RunFolder) -> Any:
    card = read_card(run.model_file)
    assert card is not None
    return get_task("segmentation").make_task(card, SegmentationOptions())


def confusion_of(maps: dict[str, np.ndarray], data: Path, ignored: int = 11) -> np.ndarray:
    """Return the pixels by true and predicted class, from label maps by stem."""
    counts = np.zeros((11, 11), np.int64)
    for stem, found in maps.items():
        with Image.open(data / "val" / "labels" / f"{stem}.png") as image:
            truth = np.array(image)
        assert truth.shape == found.shape
        np.add.at(counts, (truth[truth != ignored], found[truth != ignored]), 1)
    return counts


def test_evaluation_is_that_of_training_without_fusing(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused networks answer to 1e-4, which turns the class of a few pixels."""
    monkeypatch.setattr("fishnet.loading.fuse", lambda network, kernels: network)
    found = evaluate(str(trained.path), out=str(tmp_path), workers=0, device="cpu", batch_size=QUICK["batch_size"])
    rows = MetricsFile(trained.metrics_csv).read()
    logged = {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}
    assert found.metrics == pytest.approx(logged, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"flip": True, "scales": [0.75, 1.25]}, {"tile": 64, "overlap": 0.5}], ids=str
)  # fmt: skip
def test_evaluation_counts_the_pixels_of_the_label_maps_that_predict_writes(
    trained: RunFolder, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    found = evaluate(str(trained.path), out=str(tmp_path / "e"), workers=0, device="cpu", batch_size=1, **options)
    out = tmp_path / "p"
    predict(str(trained.path), [str(data / "val" / "images")], str(out), workers=0, batch_size=1, **options)
    maps = {path.stem: np.array(Image.open(path)) for path in (out / "labels").iterdir()}
    counts = confusion_of(maps, data)
    assert found.document["confusion"] == counts.tolist()
    assert found.document.get("options", {}) == options
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    known = union > 0
    assert found.metrics["miou"] == pytest.approx((counts.diagonal()[known] / union[known]).mean(), abs=1e-12)


def test_predictions_say_the_shares_of_the_classes(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    found = predict(str(trained.path), [str(data / "val" / "images")], str(tmp_path), workers=0, device="cpu")
    assert len(found.images) == 6
    for entry in found.images:
        with Image.open(tmp_path / "labels" / f"{Path(entry['file']).stem}.png") as image:
            label_map = np.array(image)
        assert label_map.shape == (entry["height"], entry["width"])
        shares = {one["index"]: one["share"] for one in entry["predictions"]}
        assert shares == pytest.approx({i: (label_map == i).mean() for i in np.unique(label_map)}, abs=1e-6)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 6
    assert found.document["coding"]["classes"] == found.document["classes"]["pixel"]


def test_the_parts_serve_own_code(trained: RunFolder) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 133, 3), dtype=np.uint8))
    network, transform, classes, _ = fishnet.load(trained.path)
    seen = transform(photo)
    with torch.no_grad():
        (logits,) = network([seen])["pixel"]
    assert logits.shape == (len(classes), *seen.shape[1:])
    answer = Predictor(trained.path, device="cpu")(photo)
    resized = torch.nn.functional.interpolate(logits[None], (70, 133), mode="bilinear")[0]
    assert (answer["label_map"] == resized.argmax(0).numpy()).mean() > 0.999
    assert sum(answer["shares"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "pixel",
    [
        {"decoder": "upernet", "width": 8, "losses": ["cross_entropy", "dice=0.5"], "auxiliary": True},
        {"decoder": "smp:unet", "decoder_options": {"decoder_channels": [16, 16, 8, 8, 8]}, "losses": ["ohem"]},
        {"decoder": "fpn", "class_weights": "median_frequency", "losses": ["lovasz", "focal"]},
    ],
    ids=lambda pixel: pixel["decoder"],
)
def test_decoders_and_losses_train(data: Path, tmp_path: Path, pixel: dict[str, Any]) -> None:
    run = train("segmentation", data=str(data), out=str(tmp_path), **QUICK, max_steps=1, pixel=pixel)
    first = {row["name"]: float(row["value"]) for row in MetricsFile(run.metrics_csv).read() if row["split"] == "train"}
    parts = {name: value for name, value in first.items() if name.startswith("loss_")}
    wanted = {f"loss_{name.partition('=')[0]}" for name in pixel["losses"]}
    wanted |= {"loss_auxiliary"} if pixel.get("auxiliary") else set()
    if len(wanted) == 1:  # it is the loss of the run
        assert not parts
        assert 0 < first["loss"] < 10
        return
    assert set(parts) == wanted
    assert sum(parts.values()) == pytest.approx(first["loss"], rel=1e-5)


def test_a_run_that_stops_inside_an_epoch_resumes_bit_identical(data: Path, tmp_path: Path) -> None:
    settings = {
        **QUICK,
        "data": str(data),
        "max_steps": None,
        "ema": 0.9,
        "pixel": {"losses": ["cross_entropy", "lovasz"]},
    }
    straight = train("segmentation", **settings, out=str(tmp_path / "straight"))
    train("segmentation", **{**settings, "max_steps": 1}, out=str(tmp_path / "resumed"))
    resumed = train("segmentation", **settings, out=str(tmp_path / "resumed"), resume=True, allow_changes=True)
    assert_equal_runs(straight.path, resumed.path, steps=3)


def test_a_trunk_comes_from_a_detector_and_goes_to_a_classifier(
    trained: RunFolder, mini: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    photos = mini("cifar10")
    settings = {**QUICK, "augment": {}, "max_steps": 1, "lr": 1e-12, "weights": str(trained.path), "batch_size": 8}
    run = train("classification", data=str(photos), out=str(tmp_path), **settings)
    before, after = load_file(trained.model_file), load_file(run.model_file)
    trunk = {name for name in before if name.startswith("trunk.") and name.endswith("conv.weight")}
    assert trunk
    assert all(torch.allclose(before[name], after[name]) for name in trunk & set(after))


def test_label_maps_that_are_ignored_everywhere_cost_nothing(data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    for path in sorted((root / "train" / "labels").iterdir())[:4]:
        with Image.open(path) as image:
            Image.new("L", image.size, 11).save(path)
    run = train("segmentation", data=str(root), out=str(tmp_path / "run"), **QUICK)
    losses = [float(row["value"]) for row in MetricsFile(run.metrics_csv).read() if row["name"] == "loss"]
    assert all(np.isfinite(losses))


def test_classes_of_another_data_set_are_refused(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    described = json.loads((root / "classes.json").read_text("utf-8"))
    described["classes"][0] = "heaven"
    (root / "classes.json").write_text(json.dumps(described))
    with pytest.raises(FishnetError, match=r"missing Sky, unknown heaven"):
        evaluate(str(trained.path), str(root), workers=0, device="cpu")


@pytest.mark.parametrize("name", list_recipes(get_task("segmentation")))
def test_recipes_are_settings(name: str) -> None:
    config = resolve(get_task("segmentation"), name, {"data": "x"})
    assert config.pixel.decoder == "fish"
    assert config.augment.max_class_share == 0.75


def test_the_poly_schedule_is_that_of_its_formula() -> None:
    optim = OptimConfig(schedule="poly", warmup_epochs=1, final_lr=0.01)
    for step in (10, 37, 99):
        progress = (step - 10) / 90
        assert lr_share(optim, step, 10, 10) == pytest.approx(0.01 + 0.99 * (1 - progress) ** 0.9)
    assert lr_share(optim, 100, 10, 10) == pytest.approx(0.01)


def test_random_scales_follow_the_limit_of_the_longer_side(data: Path) -> None:
    sample = open_segmentation(data, "val").sample(0)  # 201x133
    found = RandomScale(133, (1.0, 1.0), longest=100)(sample)
    assert tuple(found["image"].shape[-2:]) == (66, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel": {"losses": ["cross_entropi"]}}, "unknown loss 'cross_entropi'.*Did you mean 'cross_entropy'"),
        ({"pixel": {"losses": ["dice=much"]}}, "must be NAME=NUMBER, such as dice=0.5"),
        ({"pixel": {"losses": ["dice", "dice=2"]}}, "names dice twice"),
        ({"pixel": {"decoder": "fishs"}}, "unknown decoder 'fishs'"),
        ({"augment": {"crop": [0, 5]}}, "augment.crop must be"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        train("segmentation", data=str(data), out=str(tmp_path / "run"), **{**QUICK, **settings})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_options_out_of_range() -> None:
    for options in ({"tile": 8}, {"overlap": 1.0}, {"scales": []}, {"scales": [-1.0]}):
        with pytest.raises(UsageError):
            SegmentationOptions(**options)


def test_options_that_do_not_change_an_evaluation_are_refused(trained: RunFolder) -> None:
    with pytest.raises(UsageError, match="score"):
        evaluate(str(trained.path), score=0.5)
