from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import fishnet.recipes
from fishnet.cli import COMMANDS, find_command, parse
from fishnet.config import named_numbers
from fishnet.data.augmentation import eval_pipeline
from fishnet.data.classification.transforms import eval_transform, train_transform
from fishnet.data.detection.transforms import train_pipeline
from fishnet.errors import UsageError
from fishnet.recipes import list_recipes, read_recipe
from fishnet.schema import build_config
from fishnet.settings import differences, read_settings, resolve, save_settings
from fishnet.tasks import get_task
from fishnet.tasks.classification.options import ClassificationConfig
from fishnet.training.optimizer import base_lr
from tests.fuzzing import mutate

RECIPES = [(task, name) for task in ("classification", "detection") for name in list_recipes(get_task(task))]
CLASSIFICATION, DETECTION = get_task("classification"), get_task("detection")


def build_pipelines(task: str, config: Any) -> None:
    if task == "classification":
        train_transform(config.augment, config.preprocess, config.size)
        eval_transform(config.preprocess, config.size)
    else:
        train_pipeline(config.augment, config.size, config.longest, ["left_eye", "right_eye"])
        eval_pipeline(config.size, config.longest)


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_every_recipe_works_and_says_where_it_comes_from(task: str, name: str) -> None:
    config = resolve(get_task(task), name, {})
    build_pipelines(task, config)
    if config.optim.schedule == "step":
        assert all(0 < epoch < config.epochs for epoch in config.optim.step_at)
    folder = Path(fishnet.recipes.__file__).parent / task
    lines = (folder / f"{name}.yaml").read_text("utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[: len(header)] == header
    parts = {part: [line for line in header if line.startswith(f"# {part}:")] for part in PARTS}
    assert all(len(found) == 1 and len(found[0].split(":", 1)[1].split()) > 0 for found in parts.values()), parts
    words = parts["Command"][0].split(":", 1)[1].split()
    assert words[0] == "fishnet"
    command, rest = find_command(words[1:])
    values = parse(command, COMMANDS[command], COMMANDS[command].load(), rest)
    if command == "train":
        assert values is not None
        assert (values.pop("task"), values.pop("recipe")) == (task, name)
        assert resolve(get_task(task), name, values).model == values["model"]


PARTS = ("Source", "Command", "Cost", "Score")


@pytest.mark.parametrize("name", ["coco_1x", "coco_3x"])
@pytest.mark.parametrize(
    ("detector", "published"),
    [("faster_rcnn", 0.02), ("mask_rcnn", 0.02), ("cascade_rcnn", 0.02), ("retinanet", 0.01), ("fcos", 0.01)],
)
def test_rates_on_coco_are_the_published_ones_for_16_images(name: str, detector: str, published: float) -> None:
    config = resolve(DETECTION, name, {"detector": detector})
    assert config.batch_size == 16
    assert base_lr(config) == pytest.approx(published)
    by_hand = resolve(DETECTION, name, {"detector": detector, "optim": {"lr": 0.5}})
    assert by_hand.optim.lr == 0.5


def test_settings_by_detector_follow_the_detector_wherever_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("size: 100\nby_detector: {fcos: {size: 200}, mask_rcnn: {size: 300}}\n")
    read = partial(resolve, DETECTION, str(file))
    sizes = [read({"detector": name}).size for name in ("fcos", "mask_rcnn", "retinanet")]
    assert sizes == [200, 300, 100]
    assert read({}).size == 100
    assert read({}, base={"detector": "fcos"}).size == 200
    assert read({"detector": "fcos", "size": 7}).size == 7
    file.write_text("detector: fcos\nsize: 100\nby_detector: {fcos: {size: 200}, mask_rcnn: {size: 300}}\n")
    assert read({}, base={"detector": "mask_rcnn"}).size == 200
    for text, says in (
        ("by_detector: {fcoss: {size: 200}}", "unknown detector 'fcoss'.*Did you mean 'fcos'"),
        ("by_detector: {fcos: {sise: 200}}", "unknown setting 'sise'.*Did you mean 'size'"),
        ("by_detector: {fcos: {detector: retinanet}}", "other than detector"),
        ("by_detector: 5", "must be a mapping"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=f"mine.yaml.*{says}"):
            read({})


def test_settings_by_a_setting_of_a_group(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {name: sgd, lr: 0.1}\nby_optim.name: {adamw: {optim: {lr: 0.001}}, lamb: {epochs: 7}}\n")
    assert resolve(CLASSIFICATION, str(recipe), {}).optim.lr == 0.1
    assert resolve(CLASSIFICATION, str(recipe), {"optim": {"name": "adamw"}}).optim.lr == 0.001
    assert resolve(CLASSIFICATION, str(recipe), {"optim": {"name": "lamb"}}).epochs == 7
    assert resolve(CLASSIFICATION, str(recipe), {"optim": {"name": "adamw", "lr": 3.0}}).optim.lr == 3.0
    recipe.write_text("by_optim.name: {adamw: {optim: {name: sgd}}}\n")
    with pytest.raises(UsageError, match=r"by_optim.name.adamw must be a mapping of settings other than optim.name"):
        resolve(CLASSIFICATION, str(recipe), {})
    recipe.write_text("by_optim.speed: {fast: {epochs: 1}}\n")
    with pytest.raises(UsageError, match=r"by_optim.speed needs a setting whose values are words"):
        resolve(CLASSIFICATION, str(recipe), {})


def test_settings_given_by_hand_win_over_the_recipe_and_groups_merge() -> None:
    config = resolve(CLASSIFICATION, "cifar10", {"epochs": 2, "optim": {"lr": 0.7}, "model_option": {"gate": False}})
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
        ({"lr": float("nan")}, "lr is nan; it must be a finite number"),
        ({"optim": {"lr": 10**400}}, "lr"),
        ({"size": 2**70}, "size is 1180591620717411303424, which is too large"),
        ({"epochs": None}, "epochs must not be null"),
        ({"optim": {"lr": None}}, "optim.lr must not be null"),
        ({"augment": {"short_edges": [None]}}, "augment.short_edges must not be null"),
        ({"heads": {"proposals": 0}}, "heads.proposals is 0; it must be at least 1"),
        ({"augment": {"short_edges": [600, -1]}}, "augment.short_edges is -1; it must be at least 1"),
        ({"optim": {"momentum": 1.0}}, "optim.momentum is 1.0; it must be at least 0 and below 1"),
        ({"out": "a\nb"}, "out is 'a\\nb'; it must be text of one line"),
    ],
)
def test_a_bad_setting_is_one_clear_line(tree: dict, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(DETECTION if "heads" in tree or "short_edges" in str(tree) else CLASSIFICATION, None, tree)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_with_unknown_keys_or_a_class_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {class_path: torch.nn.Linear}\n")
    with pytest.raises(UsageError):
        resolve(CLASSIFICATION, str(file), {})
    file.write_text("modle: fishnet99\n")
    with pytest.raises(UsageError, match="Did you mean 'model'"):
        resolve(CLASSIFICATION, str(file), {})
    for text in (
        "!!python/object/apply:os.system ['true']\n", "seed: 2024-13-45", "seed: !!int x", "seed: !!timestamp x",
        "\x00", "[" * 5000,
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UsageError, match=r"mine\.yaml is not valid YAML"):
            resolve(CLASSIFICATION, str(file), {})
    file.write_bytes("model: fishnet99 # ä".encode("latin-1"))
    with pytest.raises(UsageError, match=r"mine\.yaml is not valid YAML"):
        resolve(CLASSIFICATION, str(file), {})
    bomb = "\n".join([f"x{n}: &a{n} [{f'*a{n - 1},' * 9}]" if n else "x0: &a0 [1]" for n in range(12)])
    for endless in (bomb, "freeze: &a [*a]"):
        file.write_text(endless)
        with pytest.raises(UsageError, match=r"mine\.yaml has more than"):
            resolve(CLASSIFICATION, str(file), {})


def test_a_bad_value_of_a_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, says in (("epochs: many", "epochs"), ("optim: {lr: .nan}", "optim.lr is nan")):
        file.write_text(text)
        with pytest.raises(UsageError, match=rf"mine\.yaml: .*{says}"):
            resolve(CLASSIFICATION, str(file), {"size": 64})
    file.write_text("epochs: 3")
    with pytest.raises(UsageError, match=r"^size is 0; it must be at least 1"):
        resolve(CLASSIFICATION, str(file), {"size": 0})


def exercise(file: Path, task: str, tree: Any) -> bool:
    """Resolve a recipe and build its pipelines; return whether it was refused, in one line that names the file."""
    try:
        file.write_text(yaml.safe_dump(tree, allow_unicode=True))
    except (UnicodeEncodeError, yaml.YAMLError):
        file.write_text("no: mapping of settings")
    try:
        build_pipelines(task, resolve(get_task(task), str(file), {}))
    except UsageError as error:
        return check_message(str(error))
    return False


def check_message(text: str) -> bool:
    assert "\n" not in text
    assert len(text) < 1000
    return True


def run(root: Path, seed: int, count: int) -> int:
    rng, refused = random.Random(seed), 0
    bases = [(task, read_recipe(get_task(task), name, {})) for task, name in RECIPES]
    for number in range(count):
        task, tree = rng.choice(bases)
        mutated = mutate(tree, rng)
        try:
            refused += exercise(root / "mine.yaml", task, mutated)
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {str(mutated)[:2000]}") from error
    return refused


def test_damaged_recipes_end_in_one_line(tmp_path: Path) -> None:
    assert 30 < run(tmp_path, seed=0, count=100) < 100


@pytest.mark.slow
def test_many_damaged_recipes(tmp_path: Path) -> None:
    run(tmp_path, seed=1, count=3000)


def test_one_value_is_a_list_of_one_and_none_is_null(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "freeze: stem, tail\nema: None\noptim: {step_at: 30, clip_grad: none}\npreprocess: {std: [1, 1, 1]}\n"
    )
    config = resolve(CLASSIFICATION, str(recipe), {})
    assert config.freeze == ["stem", "tail"]
    assert (config.ema, config.optim.clip_grad, config.optim.step_at) == (None, None, [30])
    with pytest.raises(UsageError, match="epochs"):
        resolve(CLASSIFICATION, None, {"epochs": "None"})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cifar10'"):
        read_recipe(CLASSIFICATION, "cifar", {})


def test_saved_settings_read_back_equal_and_differences_are_named(tmp_path: Path) -> None:
    config = resolve(CLASSIFICATION, "imagenet_modern", {"data": "photos", "out": "run"})
    save_settings(tmp_path / "config.yaml", "classification", config)
    saved = read_settings(tmp_path / "config.yaml", ClassificationConfig)
    again = resolve(CLASSIFICATION, None, {}, base=saved)
    assert again == config
    changed = resolve(CLASSIFICATION, None, {"augment": {"mixup": 0.3}, "workers": 5}, base=saved)
    found = differences(saved, changed, ignore=["workers"])
    assert found == [("augment.mixup", 0.1, 0.3)]


def test_the_defaults_are_the_fields_of_the_dataclass() -> None:
    assert build_config(ClassificationConfig, {}, "nothing") == ClassificationConfig()


def test_the_recipe_of_a_classifier_counts_photos_only(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/b.jpg", "labels/a.png", "labels/b.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kind = get_task("classification")
    assert "only 2 training images" in kind.choose_recipe({"data": str(tmp_path)}).reason
    assert kind.choose_recipe({"data": str(tmp_path / "train")}).reason == "no weights are given"


def test_entries_of_name_and_number() -> None:
    assert named_numbers("losses", ["cross_entropy", " dice = 0.5"], 1.0) == {"cross_entropy": 1.0, "dice": 0.5}
    with pytest.raises(UsageError, match=r"^part_lr: 'stem' must be NAME=NUMBER, such as stem=0.5$"):
        named_numbers("part_lr", ["stem"])
