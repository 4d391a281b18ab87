"""Ways of a new user from data to predictions, typed as in a shell; each answer names the command that follows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fishnet.cli import main
from fishnet.data.detection.convert import convert_boxes

QUICK = ("--model", "fishnet_nano", "--epochs", "1", "--size", "64", "--workers", "0", "--device", "cpu")


def type_(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    found = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert found == code, captured.out + captured.err
    return captured.out + captured.err


@pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
def test_from_a_voc_folder_without_splits_to_predictions(
    mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc, coco, run = tmp_path / "voc", tmp_path / "coco", tmp_path / "run"
    convert_boxes(mini("pennfudan"), voc, "voc")
    shutil.rmtree(voc / "ImageSets")
    said = type_(capsys, "data", "convert", voc, coco)
    assert f"next: fishnet data check detection {coco}" in said
    said = type_(capsys, "data", "check", "detection", coco, code=1)
    assert f"`fishnet data split {coco}` creates it" in said
    said = type_(capsys, "data", "split", coco)
    assert f"next: fishnet train detection --data {coco} --out" in said
    assert "no problems" in type_(capsys, "data", "check", "detection", coco)
    said = type_(
        capsys, "train", "detection", "--data", coco, "--out", run, *QUICK, "--longest", "96", "--max-steps", "3"
    )
    assert "recipe scratch_small: no weights are given" in said
    assert "detector faster_rcnn: " in said
    said = type_(capsys, "train", "detection", "--data", coco, "--out", run, *QUICK, "--longest", "96", "--overwrite")
    assert f"next: fishnet evaluate {run} --data {coco}" in said
    assert f"next: fishnet predict {run} IMAGES --out predictions" in said
    assert "best epoch 1: box AP 0." in said
    assert "box ap50" in type_(capsys, "evaluate", run, "--data", coco, "--workers", "0")
    photos = sorted((coco / "train").iterdir())[:2]
    type_(capsys, "predict", run, *photos, "--out", tmp_path / "found", "--score", "0")
    entries = json.loads((tmp_path / "found" / "results.json").read_text())["images"]
    assert [Path(entry["file"]).name for entry in entries] == [photo.name for photo in photos]


def test_from_photos_in_folders_to_predictions(
    mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    for name in ("cat", "ship"):
        (photos / name).mkdir(parents=True)
        for path in sorted((mini("cifar10") / "train" / name).iterdir())[:30]:
            shutil.copy(path, photos / name)
    said = type_(capsys, "data", "check", "classification", photos, code=1)
    assert f"`fishnet data split {photos}` creates both" in said
    said = type_(capsys, "data", "split", photos)
    assert f"next: fishnet train classification --data {photos} --out" in said
    options = ("--model-option", "stem_stride=1")
    said = type_(capsys, "train", "classification", "--data", photos, "--out", run, *QUICK, *options)
    assert "recipe scratch_small: no weights are given" in said
    assert re.search(r"best epoch 1: top-1 [0-9.]+ %; weights: ", said)
    said += type_(capsys, "evaluate", run, "--data", photos, "--workers", "0")
    assert "top-1" in said
    assert "top-5" not in said + (run / "report.html").read_text("utf-8")  # of two classes it says nothing
    type_(capsys, "predict", run, photos / "val", "--out", tmp_path / "found")
    assert (tmp_path / "found" / "results.json").exists()
    assert "resuming at step" in type_(capsys, "train", "--resume", run)
    assert "resuming at step" in type_(capsys, "train", "classification", "--resume", run, "--workers", "1")
    said = type_(capsys, "train", "--resume", tmp_path / "nowhere", code=1)
    assert f"{tmp_path / 'nowhere'} does not contain a run (no config.yaml)" in said
    config = run / "config.yaml"
    said = type_(capsys, "train", "detection", "--data", photos, "--out", tmp_path / "x", "--recipe", config, code=2)
    assert "contains settings of classification, not of detection" in said


@pytest.mark.parametrize(("task", "name"), [("detection", "pennfudan"), ("classification", "cifar10")])
def test_a_folder_one_level_too_deep_is_an_error_of_one_line(
    mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, name: str
) -> None:
    said = type_(capsys, "train", task, "--data", mini(name) / "train", "--out", tmp_path / "run", *QUICK, code=1)
    assert said.startswith(f"fishnet: error: {mini(name) / 'train'} ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_reduced_with_a_note(
    mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for name in ("cat", "ship"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for path in sorted((mini("cifar10") / split / name).iterdir())[:9]:
                shutil.copy(path, tmp_path / "photos" / split / name)
    command = ["train", "classification", "--data", tmp_path / "photos", "--out", tmp_path / "run", *QUICK]
    command += ["--model-option", "stem_stride=1", "--accumulate", "4", "--norm", "group", "--size", "32"]
    said = type_(capsys, *command)
    assert "batch size 32 reduced to 16: the training split has 18 images" in said
    assert "batch_size: 16" in (tmp_path / "run" / "config.yaml").read_text()
    type_(capsys, *command, "--resume")  # the same command, though the saved settings differ from what it says


def test_without_out_runs_are_numbered(
    mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "train2"):
        said = type_(capsys, "train", "classification", "--data", mini("cifar10"), *QUICK, "--max-steps", "1")
        assert f"writing to {Path('runs', name)}" in said
        assert (tmp_path / "runs" / name / "model.safetensors").exists()
    assert not (tmp_path / "runs" / "train3").exists()
