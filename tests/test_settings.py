from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fishnet.config import TrainConfig
from fishnet.errors import UsageError
from fishnet.settings import build_config, differences, list_recipes, read_recipe, read_settings, resolve, save_settings


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_says_where_it_comes_from(name: str) -> None:
    config = build_config(read_recipe(name), name)
    assert config.epochs > 0
    header = (Path(__file__).parents[1] / "src/fishnet/recipes" / f"{name}.yaml").read_text("utf-8").split("\nmodel")[0]
    for part in ("# Command:", "# Cost:", "# Score:"):
        assert part in header


def test_settings_given_by_hand_win_over_the_recipe_and_groups_merge() -> None:
    config = resolve("cifar10", {"epochs": 2, "optim": {"lr": 0.7}, "model_option": {"gate": False}})
    assert (config.epochs, config.optim.lr, config.optim.nesterov) == (2, 0.7, True)
    assert config.model_option == {"stem_stride": 2, "gate": False}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"augment": {"mixpu": 1}}, "unknown setting 'augment.mixpu'. Did you mean 'mixup'"),
        (
            {"optim": {"class_path": "os.system", "init_args": {}}},
            "unknown setting 'optim.class_path'",
        ),
        ({"optim": "os.system"}, "must be a mapping"),
        ({"epochs": "many"}, "epochs"),
        ({"precision": "fp8"}, "fp16"),
        ({"epochs": 0}, "at least 1"),
        ({"ema": 1.5}, "between 0 and 1"),
    ],
)
def test_a_bad_setting_is_one_clear_line(tree: dict, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(None, tree)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_with_unknown_keys_or_a_class_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {class_path: torch.nn.Linear}\n")
    with pytest.raises(UsageError):
        resolve(str(file), {})
    file.write_text("modle: fishnet99\n")
    with pytest.raises(UsageError, match="Did you mean 'model'"):
        resolve(str(file), {})
    file.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(UsageError, match="no valid YAML"):
        resolve(str(file), {})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cifar10'"):
        read_recipe("cifar")


def test_saved_settings_read_back_equal_and_differences_are_named(tmp_path: Path) -> None:
    config = resolve("imagenet_modern", {"data": "photos", "out": "run"})
    save_settings(tmp_path / "config.yaml", "classification", config)
    saved = read_settings(tmp_path / "config.yaml")
    again = resolve(None, {}, base=saved)
    assert again == config
    changed = resolve(None, {"augment": {"mixup": 0.3}, "workers": 5}, base=saved)
    found = differences(saved, dataclasses.asdict(changed), ignore=["workers"])
    assert found == [("augment.mixup", 0.1, 0.3)]


def test_the_defaults_are_the_fields_of_the_dataclass() -> None:
    assert build_config({}, "nothing") == TrainConfig()
