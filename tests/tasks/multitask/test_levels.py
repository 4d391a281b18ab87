"""The whole way of several levels: data with partial labels, training, evaluation, prediction, trunks of other runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet import Predictor
from fishnet.cards import read_card
from fishnet.commands.predict import predict
from fishnet.commands.train import train
from fishnet.config import OptimConfig
from fishnet.data.panoptic import read_panoptic
from fishnet.data.run_lengths import decode
from fishnet.errors import FishnetError, UsageError
from fishnet.models.build import build_network
from fishnet.runs import RunFolder
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.multitask.training import MultitaskTraining
from fishnet.training.optimizer import build_optimizer
from tests.tasks.multitask.makers import partial_scenes

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
TRAIN = ("irp", "i", "r", "p", "iR", "rp", "ip", "irp")
VAL = ("irp", "i", "rp", "p", "irp", "R")
QUICK: dict[str, Any] = {
    "model": "fishnet_nano", "epochs": 1, "batch_size": 4, "size": 64, "workers": 0, "log_every": 1, "device": "cpu",
    "heads": {"preset": "nano", "proposals": 40, "samples": 16, "score": 0.001},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return partial_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": TRAIN, "val": VAL})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train("multitask", data=str(data), out=str(tmp_path_factory.mktemp("run") / "run"), **QUICK)


def test_predictions_of_all_levels_agree(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    photos, all_objects = sorted((data / "val" / "images").iterdir()), {"score": 0.0, "max_detections": 8}
    found = predict(str(trained.path), [str(p) for p in photos], str(tmp_path), workers=0, device="cpu", **all_objects)
    panoptic = read_panoptic(tmp_path / "panoptic.json")
    assert len(found.images) == len(panoptic) == len(photos)
    predictor = Predictor(trained.path, device="cpu", **all_objects)
    for place, (entry, photo) in enumerate(zip(found.images, photos, strict=True)):
        answer = predictor(photo)
        assert [one["label"] for one in entry["image"]] == answer["image"]["labels"]
        assert len(entry["image"]) == 5
        assert [one["score"] for one in entry["region"]] == pytest.approx(answer["region"]["scores"], abs=1e-6)
        shares = {one["index"]: one["share"] for one in entry["pixel"]}
        with Image.open(tmp_path / "labels" / f"{photo.stem}.png") as image:
            label_map = np.array(image)
        assert np.array_equal(label_map, answer["pixel"]["label_map"])
        assert shares == pytest.approx({i: (label_map == i).mean() for i in np.unique(label_map)}, abs=1e-6)
        masks = decode([one["mask"] for one in entry["region"]], 64, 64)
        assert masks.shape == (len(entry["region"]), 64, 64)
        segments = panoptic.read(place)
        assert [dict(one) for one in segments.segments] == entry["panoptic"]
        assert np.array_equal(segments.ids, answer["panoptic"].ids)
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == len(photos)


def test_a_picture_shows_boxes_where_they_are_in_large_photos(trained: RunFolder, tmp_path: Path) -> None:
    """Boxes are in pixels of the photo, and the picture is smaller."""
    from fishnet.drawing.regions import class_color

    card = read_card(trained.model_file)
    assert card is not None
    painter = get_task("multitask").make_task(card, None).painter(tmp_path, 1)
    photo = Image.new("RGB", (1280, 960), "black")
    empty = {"labels": [], "indices": [], "scores": []}
    region = {"labels": ["0"], "indices": [0], "scores": [0.9], "boxes": [[640.0, 480.0, 1200.0, 900.0]]}
    panoptic = Predictor(trained.path, device="cpu")(photo)["panoptic"]
    pixel = {"label_map": np.zeros((960, 1280), np.uint8), **empty, "shares": []}
    painter.add(
        {"file": "photo.png", "thumbnail": painter.thumbnail(photo)},
        {"image": empty, "region": region, "pixel": pixel, "panoptic": panoptic},
    )
    painter.finish()
    with Image.open(tmp_path / "pictures" / "photo.jpg") as image:
        drawn = np.array(image.convert("RGB"))[:480, :640].astype(int)
    near = np.abs(drawn - np.array(class_color(0))).sum(-1) < 60
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    assert (columns[0], columns[-1], rows[-1]) == pytest.approx((320, 600, 450), abs=4)


def test_learned_weights_are_exempt_from_weight_decay(data: Path) -> None:
    settings = {"data": str(data), "weighting": "uncertainty", "model": "fishnet_nano", "optim": {"decay_all": True}}
    training = MultitaskTraining(resolve(get_task("multitask"), "scratch_small", settings))
    network = build_network(training.architecture())
    assert OptimConfig().decay_all
    optimizer = build_optimizer(network, training.config)
    learned = {id(parameter) for parameter in network.log_variances.values()}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(learned) == 3
    assert {decays[one] for one in learned} == {0.0}
    assert any(value > 0 for value in decays.values())


def test_learned_weights_follow_their_formula(data: Path) -> None:
    """Of each level exp(-s) times its losses, and s / 2; of a level without labels in the batch nothing."""
    common = {"data": str(data), "model": "fishnet_nano", "size": 64, "longest": 64, "norm": "group"}
    common |= {"pixel": {"dropout": 0.0}}
    found = {}
    for weighting in ("fixed", "uncertainty"):
        training = MultitaskTraining(
            resolve(get_task("multitask"), "scratch_small", {**common, "weighting": weighting})
        )
        torch.manual_seed(0)
        network = build_network(training.architecture()).train()
        for scale, (_, parameter) in enumerate(sorted((network.log_variances or {}).items()), 1):
            parameter.data.fill_(scale / 2)  # image 0.5, pixel 1, region 1.5
        everything = [training.train_data[place] for place in range(len(training.train_data))]
        samples = [sample for sample in everything if "pixel" not in sample["target"]]
        assert training.task.collate is not None
        found[weighting] = training.losses(network, training.task.collate(samples), 0)
    fixed, learned = found["fixed"], found["uncertainty"]
    assert {name.partition("_")[0] for name in learned} == {"image", "region"}
    for name, value in fixed.items():
        level = name.partition("_")[0]
        scale = {"image": 0.5, "region": 1.5}[level]
        assert learned[name].item() == pytest.approx(value.item() * np.exp(-scale), rel=1e-4)
        assert learned[f"{level}_log_variance"].item() == pytest.approx(scale / 2)
    sum(learned.values()).backward()
    assert network.log_variances is not None
    assert network.log_variances["pixel"].grad is not None
    assert network.log_variances["pixel"].grad.item() == 0


def without_maps(root: Path, split: str) -> None:
    shutil.rmtree(root / split / "labels")


def of_other_classes(root: Path, split: str) -> None:
    path = root / "annotations" / f"instances_{split}.json"
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = "zero"
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda root: without_maps(root, "train"),
            {"levels": ["pixel"]},
            "no image of split 'train' has labels of the pixel",
        ),
        (lambda root: without_maps(root, "val"), {}, "no image of split 'val' has labels of the pixel level"),
        (lambda root: of_other_classes(root, "val"), {}, "classes of the region level differ.*only in.*zero"),
        (None, {"detector": "keypoint_rcnn"}, "keypoint"),
        (None, {"stuff": ["skyy"]}, "skyy"),
        (None, {"loss_weights": {"image": -1.0}}, "loss_weights.image is -1.0; it must not be negative"),
        (None, {"augment": {"scale_jitter": [2.0, 1.0]}}, "augment.scale_jitter must be a range"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    data: Path, tmp_path: Path, change: Any, settings: dict[str, Any], message: str
) -> None:
    root = data
    if change is not None:
        root = Path(shutil.copytree(data, tmp_path / "data"))
        change(root)
    with pytest.raises((FishnetError, UsageError), match=message) as raised:
        train("multitask", data=str(root), out=str(tmp_path / "run"), **{**QUICK, **settings})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_images_without_any_label_are_left_out_with_a_note(tmp_path: Path, capsys: Any) -> None:
    root = partial_scenes(tmp_path / "data", {"train": ("irp", "", "ip", "rp", "i"), "val": ("irp", "")})
    training = MultitaskTraining(resolve(get_task("multitask"), "scratch_small", {"data": str(root)}))
    assert (len(training.train_data), len(training.val_data)) == (4, 1)
    printed = capsys.readouterr()
    assert "skipped 1 image without a label of any level, such as" in printed.out + printed.err


def test_only_a_chosen_level_is_learned_and_other_images_are_left_out(data: Path) -> None:
    settings = {"data": str(data), "levels": ["pixel", "image"]}
    training = MultitaskTraining(resolve(get_task("multitask"), "scratch_small", settings))
    assert list(training.architecture().heads) == ["image", "pixel"]
    assert len(training.train_data) == sum("i" in known or "p" in known for known in TRAIN)
