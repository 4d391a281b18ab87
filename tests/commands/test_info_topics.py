"""`fishnet info` on recipes and topics of tasks, and the starter file of `fishnet train --print-config`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fishnet.cli import main
from fishnet.models.heads.detectors import DETECTORS
from fishnet.models.heads.pixel_decoders import DECODERS
from fishnet.recipes import list_recipes
from fishnet.settings import resolve, save_settings
from fishnet.tasks import get_task, loaded_tasks


def typed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(list(words)) == code
    told = capsys.readouterr()
    return told.out + told.err


def test_all_recipes_are_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = typed(capsys, "info", "recipes").splitlines()
    for kind in loaded_tasks():
        for name in list_recipes(kind):
            (line,) = [one for one in lines if one.split()[:2] == [name, kind.name]]
            assert len(line.split()) > 5


def test_one_recipe_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told = typed(capsys, "info", "recipe", "finetune")
    assert "# task: classification" in told
    assert "# task: detection" in told
    found = yaml.safe_load(typed(capsys, "info", "recipe", "coco_1x"))
    assert found["epochs"] == 12
    assert "Did you mean 'finetune'" in typed(capsys, "info", "recipe", "finetun", code=2)
    assert "RECIPE is missing" in typed(capsys, "info", "recipe", code=2)
    assert "unexpected argument 'x'" in typed(capsys, "info", "fishnet_nano", "x", code=2)


def test_detectors_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    told = typed(capsys, "info", "detectors")
    assert all(f"\n{name} " in told for name in DETECTORS)


def test_decoders_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    told = typed(capsys, "info", "decoders")
    assert all(f"\n{name} " in told for name in DECODERS)
    assert "smp:unet" in told


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_printed_config_is_a_recipe_of_the_same_settings(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = typed(
        capsys, "train", task, "--print-config", "--model", "resnet18", "--optim.lr", "0.25", "--freeze", "bn1"
    )
    assert "# Number of training epochs." in told
    file = tmp_path / "mine.yaml"
    file.write_text(told)
    kind = get_task(task)
    given = {"model": "resnet18", "optim": {"lr": 0.25}, "freeze": ["bn1"]}
    expected = resolve(kind, kind.choose_recipe(given).name, given)
    assert resolve(kind, str(file), {}) == expected
    save_settings(tmp_path / "config.yaml", task, expected)
    assert yaml.safe_load(told) == yaml.safe_load((tmp_path / "config.yaml").read_text())
