"""Model files: what is written comes back, and a file that does not fit says why."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from fishnet.cards import CARD_KEY, FORMAT_VERSION, ModelCard, read_card, save_model
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.loading import load_model, resolve_device
from fishnet.models import create_model
from fishnet.models.network import Network
from fishnet.runs import RunFolder
from fishnet.tasks import make_task
from tests.models_on_disk import classifier_card, save_classifier

OPTION = {"stem_stride": 1}


def card() -> ModelCard:
    preprocess = PreprocessConfig(crop_pct=1.0, interpolation="bicubic", mean=(0.1, 0.2, 0.3))
    return classifier_card(["ant", "bée", "猫 cat"], options=OPTION, preprocess=preprocess, details={"epoch": 7})


def network(seed: int = 0, name: str = "fishnet_nano", classes: int = 3, **option: object) -> nn.Module:
    torch.manual_seed(seed)
    option = option or (OPTION if name == "fishnet_nano" else {})
    model = create_model(name, num_classes=classes, **option)
    for module in model.modules():  # statistics as after training, so that a forgotten buffer shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return model.eval()


def logits(model: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(model(images)["image"])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("run") / "model.safetensors", network(), card())


def rewrite(source: Path, target: Path, change: object) -> Path:
    """Copy a model file with another card: `change` gets its dict, or is the new text."""
    state = safetensors.torch.load_file(source)
    if callable(change):
        with safetensors.safe_open(source, framework="pt") as opened:
            content = json.loads(opened.metadata()[CARD_KEY])
        change(content)
        change = json.dumps(content)
    safetensors.torch.save_file(state, target, metadata=None if change is None else {CARD_KEY: str(change)})
    return target


@pytest.mark.parametrize("source", ["file", "folder", "text"])
def test_a_saved_model_comes_back(model_file: Path, source: str) -> None:
    given = {"file": model_file, "folder": model_file.parent, "text": str(model_file)}[source]
    model, found = load_model(given)
    assert found == card()
    assert not model.training
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(logits(model, images), network()(images))


def test_the_header_is_the_contract(model_file: Path) -> None:
    with safetensors.safe_open(model_file, framework="pt") as opened:
        content = json.loads(opened.metadata()["model.json"])
        names = set(opened.keys())
    assert content["format_version"] == 2
    assert content["task"] == "classification"
    assert content["architecture"] == {
        "backbone": "fishnet_nano",
        "heads": {
            "image": {
                "kind": "classifier",
                "num_classes": 3,
                "multi_label": False,
                "label_smoothing": 0.0,
                "class_weights": None,
            }
        },
        "options": OPTION,
        "in_chans": 3,
        "taps": "head",
        "group_norm": False,
        "uncertainty": False,
    }
    assert content["heads"] == {"image": {"classes": ["ant", "bée", "猫 cat"], "details": {}}}
    assert content["preprocessing"]["size"] == 32
    assert content["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert (content["precision"], content["details"]) == ("fp32", {"epoch": 7})
    plain = {"classifier." + key for key in ("weight", "bias")}
    assert names == {f"heads.image.{name}" if name in plain else f"trunk.{name}" for name in network().state_dict()}


def test_equal_models_give_equal_files(model_file: Path, tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last)
    for number in range(3):
        save_classifier(tmp_path / f"{number}.safetensors", model, card())
        assert (tmp_path / f"{number}.safetensors").read_bytes() == model_file.read_bytes()


def test_compiled_and_tied_weights_are_saved_plainly(tmp_path: Path) -> None:
    tensor = torch.arange(4.0)
    save_model(tmp_path / "m.safetensors", {"_orig_mod.a": tensor, "part._orig_mod.b": tensor, "c": tensor[2:]}, card())
    state = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert {name: value.tolist() for name, value in state.items()} == {
        "a": [0, 1, 2, 3],
        "part.b": [0, 1, 2, 3],
        "c": [2, 3],
    }


def test_another_size_can_be_asked_for(model_file: Path) -> None:
    assert load_model(model_file, size=48)[1].size == 48
    with pytest.raises(UsageError, match="must be at least 1 pixel"):
        load_model(model_file, size=0)


def test_a_newer_format_is_refused(model_file: Path, tmp_path: Path) -> None:
    newer = rewrite(model_file, tmp_path / "n.safetensors", lambda raw: raw.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(FishnetError, match=r"newer fishnet.*format 3.*upgrade"):
        load_model(newer)


def _drop_class(raw: dict) -> None:
    raw["heads"]["image"]["classes"].pop()


DAMAGE = {
    "text": "{not json",
    "list": "[1, 2]",
    "fewer classes": _drop_class,
    "no size": lambda raw: raw["preprocessing"].pop("size"),
    "no architecture": lambda raw: raw.pop("architecture"),
    "size of text": lambda raw: raw["preprocessing"].update(size="32"),
    "unknown filter": lambda raw: raw["preprocessing"].update(interpolation="best"),
    "no task": lambda raw: raw.update(task=""),
    "unknown head": lambda raw: raw["architecture"]["heads"]["image"].update(kind="poet"),
    "unknown size of a head": lambda raw: raw["architecture"]["heads"]["image"].update(rhymes=2),
    "a head that is not described": lambda raw: raw["heads"].pop("image"),
    "a head that is not built": lambda raw: raw["architecture"]["heads"].pop("image"),
    "network access by name": lambda raw: raw["architecture"].update(backbone="hf-hub:someone/model"),
    "network access by option": lambda raw: raw["architecture"]["options"].update(pretrained=True),
    "file access by option": lambda raw: raw["architecture"]["options"].update(checkpoint_path="/tmp/x.pth"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_hostile_card_is_one_clear_error(model_file: Path, tmp_path: Path, kind: str) -> None:
    path = rewrite(model_file, tmp_path / "damaged.safetensors", DAMAGE[kind])
    with pytest.raises(FishnetError, match=r"damaged\.safetensors: its model\.json is damaged"):
        load_model(path)


def test_a_task_of_another_version_is_refused_where_it_is_needed(model_file: Path, tmp_path: Path) -> None:
    path = rewrite(model_file, tmp_path / "poem.safetensors", lambda raw: raw.update(task="poetry"))
    with pytest.raises(FishnetError, match="unknown task 'poetry'"):
        make_task(load_model(path)[1])


def test_unknown_fields_of_the_same_format_are_ignored(model_file: Path, tmp_path: Path) -> None:
    def add(raw: dict) -> None:
        raw["note"] = 1
        raw["preprocessing"]["crop_mode"] = "center"

    assert load_model(rewrite(model_file, tmp_path / "more.safetensors", add))[1] == card()


def test_a_truncated_file_is_a_clear_error(model_file: Path, tmp_path: Path) -> None:
    content = model_file.read_bytes()
    for length in (0, 4, 1000, len(content) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(FishnetError, match=r"cut\.safetensors.*truncated"):
            load_model(path)


def test_weights_that_do_not_fit_their_header(model_file: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "odd.safetensors", {"backbone": "resnet10t"}
    rewrite(model_file, path, lambda raw: raw["architecture"].update(other))
    with pytest.raises(UsageError, match="stem_stride"):
        load_model(path)

    def change(raw: dict) -> None:
        raw["architecture"].update(other, options={})

    with pytest.raises(FishnetError, match=r"odd\.safetensors do not fit the resnet10t"):
        load_model(rewrite(model_file, path, change))


@pytest.mark.parametrize(("name", "suffix"), [("fishnet_nano", ".safetensors"), ("resnet10t", ".pth")])
def test_files_without_a_card_need_task_and_model(tmp_path: Path, name: str, suffix: str) -> None:
    model = network(name=name, classes=7, stem_stride=4) if name == "fishnet_nano" else network(name=name, classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    with pytest.raises(UsageError, match="--task and --model"):
        load_model(path)
    with pytest.raises(UsageError, match=r"give --model$"):
        load_model(path, task="classification")
    with pytest.raises(UsageError, match=r"Did you mean 'classification'"):
        load_model(path, task="clasification", model=name)
    loaded, found = load_model(path, task="classification", model=name)
    assert found.architecture.heads["image"].num_classes == 7
    assert found.heads["image"].classes == list("0123456")
    assert found.heads["image"].details == {"unnamed_classes": True}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(logits(loaded, images), model(images))
    named = load_model(path, task="classification", model=name, classes=list("abcdefg"))[1].heads["image"]
    assert (named.classes, named.details) == (list("abcdefg"), {})
    with pytest.raises(UsageError, match=r"2 class names are given.* 7 classes"):
        load_model(path, task="classification", model=name, classes=["a", "b"])


def test_preprocessing_of_a_timm_model_is_its_authors(tmp_path: Path) -> None:
    model = network(name="resnet10t", classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = load_model(tmp_path / "w.pth", task="classification", model="resnet10t")[1]
    assert (found.size, found.preprocess.interpolation) == (176, "bicubic")
    assert found.preprocess.crop_pct == pytest.approx(0.875)


def test_weights_without_a_classifier(tmp_path: Path) -> None:
    model = network(classes=0)
    torch.save(model.state_dict(), tmp_path / "trunk.pth")
    with pytest.raises(FishnetError, match="has no classifier"):
        load_model(tmp_path / "trunk.pth", task="classification", model="fishnet_nano")


def test_flags_that_contradict_the_card(model_file: Path) -> None:
    assert load_model(model_file, task="classification", model="fishnet_nano")[1] == card()
    with pytest.raises(UsageError, match="--model fishnet99 contradicts"):
        load_model(model_file, model="fishnet99")


def test_absent_sources(tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"nowhere\.safetensors does not exist"):
        load_model(tmp_path / "nowhere.safetensors")
    with pytest.raises(FishnetError, match="is not a run folder"):
        load_model(tmp_path)
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.last.write_bytes(b"x")
    with pytest.raises(FishnetError, match=r"no epoch has finished.*last\.ckpt"):
        load_model(tmp_path)


def test_names_in_the_run_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    names = [run.config_yaml, run.environment_json, run.metrics_csv, run.last, run.best, run.model_file]
    assert [path.relative_to(tmp_path).as_posix() for path in names] == [
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model.safetensors",
    ]
    assert not list(tmp_path.iterdir())


def test_a_card_that_does_not_fit_is_not_written(tmp_path: Path) -> None:
    more = dataclasses.replace(card(), architecture=classifier_card(["a", "b", "c", "d"]).architecture)
    with pytest.raises(ValueError, match="3 class names for 4 outputs"):
        save_model(tmp_path / "m.safetensors", network(), more)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_the_old_file_survives_a_failed_write(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, network(), card())
    before = path.read_bytes()

    def full(tensors: object, filename: object, metadata: object = None) -> None:
        with Path("/dev/full").open("wb") as stream:
            stream.write(b"x" * 100)

    monkeypatch.setattr("fishnet.cards.save_file", full)
    with pytest.raises((FishnetError, OSError)):
        save_classifier(path, network(seed=1), card())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device 'gpuu'"):
        resolve_device("gpuu")
    with pytest.raises(UsageError, match="'cuda:99' is not available"):
        resolve_device("cuda:99")


def test_reading_a_card_alone(model_file: Path, tmp_path: Path) -> None:
    assert read_card(model_file) == card()
    assert read_card(rewrite(model_file, tmp_path / "bare.safetensors", None)) is None


def test_class_names_for_a_file_that_has_its_own_are_refused(model_file: Path) -> None:
    names = ["ant", "bée", "猫 cat"]
    assert load_model(model_file, classes=names)[1].classes == {"image": names}
    with pytest.raises(UsageError, match="contains the names of its classes; leave --classes out"):
        load_model(model_file, classes=["a", "b", "c"])
