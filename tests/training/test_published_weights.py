"""`--weights pretrained`: which weights these are, and how images are prepared for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry as registry

from fishnet.cards import read_card
from fishnet.commands.train import train
from fishnet.config import PreprocessConfig
from fishnet.errors import UsageError
from fishnet.loading import load_model
from fishnet.models import create_model
from fishnet.settings import describe_preprocessing, read_settings, resolve, save_settings
from fishnet.tasks import get_task
from fishnet.tasks.classification.options import ClassificationConfig
from fishnet.tasks.classification.training import ClassificationTraining
from fishnet.training.module import build_model
from tests.models_on_disk import classifier_card, save_classifier
from tests.tasks.detection.test_run import QUICK, data
from tests.training.test_module import fit, photos

__all__ = ["data", "photos"]
CLASSIFICATION = get_task("classification")
MODEL = "test_resnet"
HALF = (0.5, 0.5, 0.5)


def pretrained(model: str = MODEL, **more: Any) -> dict[str, Any]:
    return {"model": model, "weights": "pretrained", **more}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Put a file of this machine in the place of the published weights, and return its tensors."""
    torch.manual_seed(11)
    state = timm.create_model(MODEL).state_dict()
    torch.save(state, tmp_path / "published.pth")
    config = timm.get_pretrained_cfg(MODEL)
    assert config is not None
    assert (config.mean, config.crop_pct) == (HALF, 0.95), "this model no longer differs from the default"
    local = dataclasses.replace(config, file=str(tmp_path / "published.pth"), hf_hub_id=None)
    monkeypatch.setitem(registry._model_pretrained_cfgs, MODEL, local)
    return state


@pytest.mark.parametrize("model", [MODEL, "test_vit.r160_in1k", "resnet10t"])
@pytest.mark.parametrize("recipe", [None, "finetune", "cifar10"])
def test_published_weights_bring_their_preprocessing(model: str, recipe: str | None) -> None:
    found = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    taken = dataclasses.asdict(resolve(CLASSIFICATION, recipe, pretrained(model)).preprocess)
    assert taken == {name: found[name] for name in ("crop_pct", "interpolation", "mean", "std")}


def test_what_is_given_by_hand_or_in_a_file_wins_and_is_said(tmp_path: Path) -> None:
    by_hand = resolve(CLASSIFICATION, "finetune", pretrained(preprocess={"crop_pct": 1.0, "mean": [0.1, 0.2, 0.3]}))
    assert (by_hand.preprocess.crop_pct, by_hand.preprocess.mean) == (1.0, (0.1, 0.2, 0.3))
    assert by_hand.preprocess.std == HALF
    line = describe_preprocessing(by_hand)
    assert line is not None
    assert "taken over: std (0.5, 0.5, 0.5), interpolation bilinear" in line
    assert "set explicitly: mean (0.1, 0.2, 0.3), crop_pct 1.0" in line
    # the settings of a run repeat it, whatever the weights say
    save_settings(tmp_path / "config.yaml", "classification", by_hand)
    assert resolve(CLASSIFICATION, str(tmp_path / "config.yaml"), {}) == by_hand
    saved = read_settings(tmp_path / "config.yaml", ClassificationConfig)
    assert resolve(CLASSIFICATION, None, {}, base=saved) == by_hand
    again = {"preprocess": {"crop_pct": 1.0, "mean": [0.1, 0.2, 0.3]}}
    assert resolve(CLASSIFICATION, "finetune", pretrained(**again), base=saved) == by_hand


def test_without_published_weights_nothing_is_taken_over(tmp_path: Path) -> None:
    assert resolve(CLASSIFICATION, "finetune", {"model": MODEL}).preprocess.crop_pct == 0.9
    assert describe_preprocessing(ClassificationConfig(model=MODEL)) is None
    assert describe_preprocessing(ClassificationConfig(model=MODEL, weights="some.pth")) is None


def test_a_run_to_start_from_brings_mean_and_std(tmp_path: Path) -> None:
    preprocess = PreprocessConfig(mean=HALF, std=(0.1, 0.2, 0.3), crop_pct=1.0)
    card = classifier_card(["a", "b"], preprocess=preprocess)
    save_classifier(tmp_path / "model.safetensors", create_model("fishnet_nano", num_classes=2), card)
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        for task in ("classification", "detection"):
            recipe = "finetune"
            taken = resolve(get_task(task), recipe, {"model": "fishnet_nano", "weights": str(weights)}).preprocess
            assert (taken.mean, taken.std) == (HALF, (0.1, 0.2, 0.3))
            assert getattr(taken, "crop_pct", None) == (0.9 if task == "classification" else None)


def test_of_a_fish_they_are_its_tag() -> None:
    for task in ("classification", "detection"):
        assert resolve(get_task(task), "finetune", pretrained("fishnet150")).weights == "osmr_in1k"
        assert resolve(get_task(task), "finetune", pretrained("fishnet_nano")).weights == "cifar10"
    for model in ("fishnet_tiny", "fishnet150.untrained"):
        with pytest.raises(UsageError, match=rf"^{model} has no published weights .*osmr_in1k of fishnet150.*"):
            resolve(CLASSIFICATION, "finetune", pretrained(model))
        with pytest.raises(UsageError, match="no published weights"):
            create_model(model, weights="pretrained")


@pytest.mark.parametrize("model", ["test_coatnet", "resnet50.no_such_tag"])
def test_a_timm_model_without_them_is_one_line(model: str) -> None:
    with pytest.raises(UsageError, match=rf"^timm has no pretrained weights of {model}[^\n]*$"):
        resolve(CLASSIFICATION, None, pretrained(model))


def test_a_fish_is_created_with_its_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "fishnet.models.checkpoints.weights.load_weights", lambda model, source, **more: asked.append(source)
    )
    create_model("fishnet150", weights="pretrained", num_classes=3)
    assert asked == ["osmr_in1k"]


def test_a_classifier_trains_and_predicts_with_their_preprocessing(
    photos: Path, tmp_path: Path, published: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    task = ClassificationTraining(resolve(CLASSIFICATION, None, pretrained(data=str(photos), size=64)))
    state = build_model(task).state_dict()
    taken = {name: value for name, value in published.items() if not name.startswith("fc.")}
    assert all(torch.equal(state[f"trunk.network.{name}"], value) for name, value in taken.items())
    image, plain = (data[0]["image"] for data in (task.val_data, ClassificationTraining(
        ClassificationConfig(data=str(photos), size=64, model=MODEL)).val_data))  # fmt: skip
    assert not torch.equal(image, plain)
    run = fit(photos, tmp_path / "run", model_option={}, epochs=1, **pretrained())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("preprocessing of the weights")]
    assert len(lines) == 1
    assert "mean (0.5, 0.5, 0.5)" in lines[0]
    assert "crop_pct 0.95" in lines[0]
    card = read_card(run.model_file)
    assert card is not None
    assert (card.preprocess.mean, card.preprocess.std, card.preprocess.crop_pct) == (HALF, HALF, 0.95)


def test_a_detector_normalizes_as_its_trunk_was_trained(
    data: Path, tmp_path: Path, published: dict[str, torch.Tensor]
) -> None:
    run = train("detection", data=str(data), out=str(tmp_path / "run"), **{**QUICK, "max_steps": 1, **pretrained()})
    network, card = load_model(run.path)
    transform: Any = network.batcher
    assert (tuple(transform.mean), tuple(transform.std)) == (HALF, HALF)
    assert (card.preprocess.mean, card.preprocess.std) == (HALF, HALF)


@pytest.mark.parametrize(
    ("option", "says"),
    [("pretrained", "--weights pretrained"), ("checkpoint_path", "--weights"), ("num_classes", "leave it out")],
)
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_options_that_no_card_may_hold_are_refused_at_the_start(
    tmp_path: Path, task: Any, option: str, says: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=rf"^model_option {option}: [^\n]*{says}[^\n]*$"):
        train(task, data=str(tmp_path), out=str(out), model=MODEL, model_option={option: True})
    assert not out.exists()
