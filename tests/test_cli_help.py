"""What the help says: every option has a sentence, a task shows its own settings only."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from fishnet.cli import COMMANDS, main, resume_by_folder
from fishnet.cli_tasks import task_argument
from fishnet.config import SETTING_GROUPS, TrainConfig
from fishnet.errors import UsageError
from fishnet.models.heads.detectors import DETECTORS
from fishnet.signatures import class_groups, class_options, function_options
from fishnet.tasks import get_task, task_names


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("task", task_names())
def test_every_setting_and_option_of_a_task_has_a_sentence(task: str) -> None:
    kind = get_task(task)
    options = [*class_options(kind.config), *class_options(kind.options)]
    options += [option for group in class_groups(kind.config) for option in group.options]
    assert len(options) > 50
    assert not [option.name for option in options if len(option.text.split()) < 2]
    assert not [option.name for option in options if not option.text.endswith((".", "."))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_of_a_command_has_a_sentence(name: str) -> None:
    options = function_options(COMMANDS[name].load()).values()
    assert not [option.name for option in options if len(option.text.split()) < 2]


def test_the_groups_contain_every_shared_setting_once() -> None:
    listed = [name for names in SETTING_GROUPS.values() for name in names]
    plain = [option.name for option in class_options(TrainConfig)]
    assert sorted(listed) == sorted(plain)


def test_training_lists_tasks_and_a_task_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    listed = help_of(capsys, "train")
    assert all(f"\n  {task} " in listed for task in task_names())
    assert "--epochs" not in listed
    classification, detection = help_of(capsys, "train", "classification"), help_of(capsys, "train", "detection")
    assert "--label-smoothing X" in classification
    assert "--label-smoothing" not in detection
    assert f"--detector {{{','.join(['auto', *DETECTORS])}}}" in " ".join(detection.split())
    assert "--detector" not in classification
    assert "(default: 100)" in classification
    first = re.findall(r"^(\S[^:\n]*):$", detection, re.M)
    assert first[:3] == ["Common settings", "Options", "Settings of detection"]


def test_a_setting_of_another_task_is_refused_with_its_owner(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["train", "classification", *base, "--detector", "fcos"]) == 2
    assert "unknown option --detector. It is a setting of detection" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("longest: 100\n")
    assert main(["train", "classification", *base, "--recipe", str(tmp_path / "mine.yaml")]) == 2
    assert "unknown setting 'longest'. It is a setting of detection" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("preprocess: {crop_pct: 0.9}\n")
    assert main(["train", "detection", *base, "--recipe", str(tmp_path / "mine.yaml")]) == 2
    assert "unknown setting 'preprocess.crop_pct'. It is a setting of classification." in capsys.readouterr().err


def test_settings_classes_are_plain_dataclasses() -> None:
    for task in task_names():
        assert issubclass(get_task(task).config, TrainConfig)
        assert get_task(task).config() == dataclasses.replace(get_task(task).config())


def test_a_value_that_is_called_like_a_task_is_not_the_task() -> None:
    hints = {"data": str, "out": str, "overwrite": bool}
    assert task_argument(["--data", "detection", "classification", "--out", "x"], hints) == "classification"
    assert task_argument(["--out=x", "detection"], hints) == "detection"
    assert task_argument(["--overwrite", "detection", "--data", "x"], hints) == "detection"
    with pytest.raises(UsageError, match="TASK is missing: one of classification, detection"):
        task_argument(["--data", "x"], hints)
    with pytest.raises(UsageError, match="Did you mean 'detection'"):
        task_argument(["detectoin", "--data", "x"], hints)


def test_a_folder_in_place_of_the_task_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "detection"):
        (tmp_path / name).mkdir()
    assert main(["data", "check", "photos"]) == 2
    assert "TASK is missing before photos: one of classification, detection" in capsys.readouterr().err
    assert main(["data", "check", "--min-size", "8", "classification", "detection"]) == 1  # task, folder
    assert "the data folder detection is empty" in capsys.readouterr().err


def test_resume_by_folder_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "detection"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("task: classification\n")
    resumed = ["classification", "--resume", "--out", "mine"]
    assert resume_by_folder(["--resume", "mine"]) == resumed
    assert resume_by_folder(["--resume=mine"]) == resumed
    assert resume_by_folder(["classification", "--resume", "mine"]) == resumed
    assert resume_by_folder(["--resume", "detection"]) == ["classification", "--resume", "--out", "detection"]
    behind_a_flag = ["--compile", "detection", "--resume", "mine"]
    assert resume_by_folder(behind_a_flag) == [*behind_a_flag[:3], "--out", "mine"]
    named_like_a_task = ["--data", "detection", "--resume", "mine"]
    assert resume_by_folder(named_like_a_task) == ["classification", *named_like_a_task[:3], "--out", "mine"]
    for untouched in (["classification", "--resume"], ["classification", "--resume=true"]):
        assert resume_by_folder(untouched) == untouched
    (tmp_path / "detection" / "config.yaml").unlink()
    before_task = ["--resume", "detection", "--out", "mine"]
    assert resume_by_folder(before_task) == before_task
