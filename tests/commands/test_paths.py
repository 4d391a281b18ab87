"""Paths as a user gives them: `pathlib` objects, relative, with spaces, and folders that hold something else."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import fishnet
from fishnet.cli import main
from fishnet.config import TrainConfig
from fishnet.errors import UsageError
from fishnet.runs import RunFolder
from fishnet.settings import differences, read_settings, save_settings
from tests.data.makers import class_folders

TINY: dict[str, Any] = {
    "model": "fishnet_nano", "model_option": {"stem_stride": 1}, "size": 32, "epochs": 1, "batch_size": 8,
    "workers": 0, "device": "cpu", "max_steps": 1,
}  # fmt: skip
QUICK: dict[str, Any] = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": {"cat": 4, "ship": 4}, "val": {"cat": 2, "ship": 2}}
    return class_folders(tmp_path_factory.mktemp("data") / "my photos", counts)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fishnet.train("classification", data=photos, out=tmp_path_factory.mktemp("runs") / "first", **TINY)


def test_path_objects_are_taken_wherever_paths_are(trained: RunFolder, photos: Path, tmp_path: Path) -> None:
    second = fishnet.train("classification", data=photos, out=tmp_path / "second", weights=trained.path, **TINY)
    assert second.model_file.is_file()
    found = fishnet.evaluate(trained.path, data=photos, out=tmp_path / "metrics", also=photos, **QUICK)
    assert found.json == tmp_path / "metrics" / "evaluation_val.json"
    assert found.others == []  # the same folder again
    assert fishnet.Predictor(trained.path, device="cpu")(next(photos.rglob("*.jpg")))["labels"]


def test_one_input_need_not_be_a_list(
    trained: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    assert len(fishnet.predict(trained.path, "val", tmp_path / "a", **QUICK).images) == 4
    assert len(fishnet.predict(trained.path, Path("val"), tmp_path / "b", **QUICK).images) == 4


def test_a_run_can_be_used_from_any_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(photos.parent)
    run = fishnet.train("classification", data=photos.name, out=tmp_path / "run", **TINY)
    assert yaml.safe_load(run.config_yaml.read_text())["data"] == str(photos)
    monkeypatch.chdir(tmp_path)
    assert fishnet.evaluate("run", **QUICK).document["data"] == str(photos)
    assert main(["train", "--resume", "run"]) == 0
    monkeypatch.chdir(photos.parent)
    assert main(["train", "--resume", str(run.path), "--data", photos.name]) == 0  # the same folder is no change
    run.config_yaml.write_text(run.config_yaml.read_text().replace(str(photos), photos.name))  # of an older version
    assert main(["train", "--resume", str(run.path)]) == 0
    assert main(["train", "--resume", str(run.path), "--data", "elsewhere"]) != 0


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a b", "{0}/a b"),
        ("image=a b region=a b", "image={0}/a b region={0}/a b"),
        ("image=a b,pixel={0}/a b", "image={0}/a b,pixel={0}/a b"),
        ("not there", "not there"),
    ],
)
def test_stored_paths_are_absolute(text: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    text, stored = text.format(tmp_path), stored.format(tmp_path)
    save_settings(tmp_path / "config.yaml", "multitask", TrainConfig(data=text, weights="cifar10"))
    tree = read_settings(tmp_path / "config.yaml", TrainConfig)
    assert (tree["data"], tree["weights"]) == (stored, "cifar10")
    assert differences(tree, TrainConfig(data=text, weights="cifar10")) == []
    assert [entry[0] for entry in differences(tree, TrainConfig(data="image=other"))] == ["data", "weights"]


def test_commands_in_messages_can_be_pasted_into_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = class_folders(tmp_path / "Meine Photos", {"": {"cat": 4, "ship": 4}})
    assert main(["train", "classification", "--data", str(folder), "--model", "fishnet_nano"]) != 0
    said = capsys.readouterr().err
    command = shlex.split(said[said.index("`") + 1 : said.rindex("`")])
    assert command == ["fishnet", "data", "split", str(folder)]
    assert main([*command[1:], "--val", "0.5"]) == 0
    assert f"data split '{folder}' --undo" in capsys.readouterr().out


def test_another_evaluation_does_not_replace_that_of_the_run(
    trained: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))
    first = fishnet.evaluate(run.path, **QUICK)
    assert first.json == run.evaluation_json()
    capsys.readouterr()
    larger = fishnet.evaluate(run.path, size=48, **QUICK)
    assert larger.json == run.path / "evaluation_val_2.json"
    assert {path.name for path in larger.pictures} == {"confusion_val_2.png"}
    said = capsys.readouterr().out
    assert "differs from that in evaluation_val.json, which is kept" in said
    assert str(larger.json) in said
    other = Path(shutil.copytree(photos, tmp_path / "others"))
    assert fishnet.evaluate(run.path, data=other, **QUICK).json == run.path / "evaluation_val_3.json"
    assert fishnet.evaluate(run.path, size=48, **QUICK).json == larger.json  # the same again
    assert (
        fishnet.evaluate(run.path, size=48, out=tmp_path / "mine", **QUICK).json
        == tmp_path / "mine/evaluation_val.json"
    )
    assert json.loads(run.evaluation_json().read_text()) == first.document
    assert fishnet.evaluate(run.path, data=photos, size=32, **QUICK).json == run.evaluation_json()


def test_a_run_is_not_written_among_other_files(
    trained: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(photos.rglob("*"))
    for out, says in (
        (photos / "train", "is not a run folder: it contains cat; choose another folder"),
        (photos / "train" / "first", f"is inside the data folder {photos}; choose a folder outside of it"),
    ):
        with pytest.raises(UsageError, match=re.escape(f"--out {out} {says}")):
            fishnet.train("classification", data=photos, out=out, **TINY)
    assert sorted(photos.rglob("*")) == before
    logged = tmp_path / "logged"
    logged.mkdir()
    (logged / "train.log").write_text("output of the command itself")
    assert fishnet.train("classification", data=photos, out=logged, **TINY).model_file.is_file()


def test_training_may_be_started_in_the_data_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    settings = {**TINY, "epochs": 1}
    assert fishnet.train("classification", data=".", **settings).path == Path("runs/train")
    assert fishnet.train("classification", data=".", **settings).path == Path("runs/train2")


def test_predictions_are_not_written_into_a_run_or_a_data_set(trained: RunFolder, photos: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(photos, tmp_path / "others"))
    for out, says in (
        (trained.path, f"contains a network; choose another folder, such as {trained.path / 'predictions'}"),
        (other, "contains a data set; choose another folder"),
        (photos / "val" / "cat", f"is inside the data folder {photos}; choose a folder outside of it"),
    ):
        with pytest.raises(UsageError, match=re.escape(f"--out {out} {says}")):
            fishnet.predict(trained.path, other / "val", out, overwrite=True, **QUICK)
