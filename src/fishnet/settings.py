"""Settings from recipes, YAML files, command lines and run folders, checked against `TrainConfig`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fishnet.config import TrainConfig
from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.files import atomic_write

Tree = dict[str, Any]


def _recipe_folder(task: str) -> Traversable:
    root = resources.files("fishnet.recipes")
    return root if task == "classification" else root / task


def list_recipes(task: str = "classification") -> list[str]:
    """Return the names of a task's built-in recipes."""
    names = (entry.name for entry in _recipe_folder(task).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def default_recipe(task: str, settings: Mapping[str, Any]) -> str | None:
    """Return the recipe of a run that names none; classification has settings of its own without one."""
    if task == "detection":
        return "finetune" if settings.get("weights") else "scratch_small"
    return None


def read_recipe(recipe: str, task: str = "classification") -> Tree:
    """Return the settings of a task's built-in recipe or of a YAML file.

    Raises:
        UsageError: No recipe or file of that name, or a file that is no mapping of known settings.
    """
    known = list_recipes(task)
    if recipe in known:
        text, where = (_recipe_folder(task) / f"{recipe}.yaml").read_text("utf-8"), recipe
    elif Path(recipe).is_file():
        text, where = Path(recipe).read_text("utf-8"), recipe
    else:
        raise UsageError(
            f"unknown recipe {recipe!r}: neither a file nor one of {', '.join(known)}.{did_you_mean(recipe, known)}"
        )
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{where} is no mapping of settings")
    check_keys(tree, where)
    return tree


@cache
def known_settings() -> dict[str, frozenset[str]]:
    """Return the fields of every group of settings; the top level is the group ''."""
    hints = typing.get_type_hints(TrainConfig)
    groups = {"": frozenset(field.name for field in dataclasses.fields(TrainConfig))}
    for name, kind in hints.items():
        if dataclasses.is_dataclass(kind):
            groups[name] = frozenset(field.name for field in dataclasses.fields(kind))
    return groups


def check_keys(tree: Mapping[str, Any], where: str) -> None:
    """Refuse settings that do not exist, naming the nearest ones."""
    groups = known_settings()
    for name, value in tree.items():
        if name not in groups[""]:
            raise UsageError(f"{where}: unknown setting {name!r}.{did_you_mean(str(name), groups[''])}")
        if name in groups:
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {name} must be a mapping of settings")
            for inner in value:
                if inner not in groups[name]:
                    raise UsageError(
                        f"{where}: unknown setting '{name}.{inner}'.{did_you_mean(str(inner), groups[name])}"
                    )


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Return all settings together, later ones first; groups of settings and model options merge by key."""
    merged: Tree = {}
    for tree in trees:
        for name, value in tree.items():
            if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
                merged[name] = {**merged[name], **value}
            else:
                merged[name] = dict(value) if isinstance(value, Mapping) else value
    return merged


def settings_parser() -> ArgumentParser:
    """Return a parser of all settings, as long options without the leading dashes' aliases."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def build_config(tree: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the settings as a checked dataclass; what the tree leaves out has its default.

    Raises:
        UsageError: An unknown setting or a value of the wrong type.
    """
    check_keys(tree, where)
    parser = settings_parser()
    try:
        namespace = parser.parse_object(dict(tree))
        return TrainConfig(**vars(parser.instantiate(namespace)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from None


def resolve(
    recipe: str | None, settings: Mapping[str, Any], base: Tree | None = None, task: str = "classification"
) -> TrainConfig:
    """Return the settings of a run.

    These are, later ones first to count: defaults, a saved run's (`base`), a built-in recipe's, the preprocessing of
    the weights to start from, a recipe file's, those given by hand. A built-in recipe cannot know the weights; whoever
    writes a file can, and that of a run (`config.yaml`) repeats it.
    """
    check_keys(settings, "settings")
    if recipe is None and base is None:
        recipe = default_recipe(task, settings)
    written = read_recipe(recipe, task) if recipe else {}
    named, own = (written, {}) if recipe in list_recipes(task) else ({}, written)
    tree = merge(base or {}, named, own, settings)
    if base is None or recipe is not None:
        tree = merge(base or {}, named, {"preprocess": weights_preprocessing(tree, task)}, own, settings)
    tree["weights"] = _tag_of(tree)
    config = build_config(tree, "settings")
    check_values(config)
    return config


def _model_and_weights(tree: Mapping[str, Any]) -> tuple[str, str | None]:
    return str(tree.get("model", TrainConfig.model)), tree.get("weights")


def _tag_of(tree: Mapping[str, Any]) -> str | None:
    """Return the weights to start from, `pretrained` of a fish by its tag."""
    from fishnet.models import PUBLISHED, published_weights

    model, weights = _model_and_weights(tree)
    return published_weights(model) if weights == PUBLISHED else weights


def weights_preprocessing(tree: Mapping[str, Any], task: str) -> Tree:
    """Return the preprocessing that settings take from the weights to start from; {} where these say nothing of it.

    Only classifiers crop their images: other tasks take mean and std.
    """
    from fishnet.runs import preprocessing_of_weights

    found = preprocessing_of_weights(*_model_and_weights(tree))
    return found if task == "classification" else {name: found[name] for name in ("mean", "std") if name in found}


def describe_preprocessing(config: TrainConfig, task: str) -> str | None:
    """Return in one line which preprocessing a run takes from its weights and which it has by hand, if any."""
    found = weights_preprocessing(vars(config), task)
    used = {name: getattr(config.preprocess, name) for name in found}
    parts = []
    for title, same in (("taken over", True), ("set by hand", False)):
        names = [name for name, value in found.items() if (tuple_of(used[name]) == tuple_of(value)) is same]
        if names:
            parts.append(f"{title}: {', '.join(f'{name} {used[name]}' for name in names)}")
    return f"preprocessing of the weights {config.weights}, {'; '.join(parts)}" if parts else None


def tuple_of(value: Any) -> Any:
    """Return lists as tuples: YAML knows lists only."""
    return tuple(value) if isinstance(value, list) else value


def check_values(config: TrainConfig) -> None:
    """Refuse values that no run can work with."""
    for name, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("accumulate", 1),
        ("size", 1),
        ("devices", 1),
        ("workers", 0),
        ("log_every", 1),
        ("validate_every", 1),
    ):
        if getattr(config, name) < least:
            raise UsageError(f"{name} is {getattr(config, name)}; it must be at least {least}")
    _check_model_options(config)
    if config.ema is not None and not 0 < config.ema < 1:
        raise UsageError(f"ema is {config.ema}; it must lie between 0 and 1, such as 0.999")
    if config.lr is not None and config.lr <= 0:
        raise UsageError(f"lr is {config.lr}; it must be positive")


def _check_model_options(config: TrainConfig) -> None:
    """Refuse keywords of a model that no card may hold, or that the task sets."""
    from fishnet.runs import REFUSED_OPTIONS

    for name in config.model_option:
        if name in REFUSED_OPTIONS:
            raise UsageError(
                f"model_option {name}: weights are no option of the model; use --weights pretrained for the published "
                "ones, or --weights with a run folder, checkpoint or tag"
            )
        if name in ("num_classes", "in_chans", "features_only", "out_indices"):
            raise UsageError(f"model_option {name}: data and task decide it; leave it out")


def to_plain(config: TrainConfig) -> Tree:
    """Return the settings as values that YAML knows."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return value

    return plain(dataclasses.asdict(config))


def save_settings(path: Path, task: str, config: TrainConfig) -> None:
    """Write config.yaml of a run folder."""
    header = f"# All settings of this run; `fishnet train {task} --recipe {path.name} --out NEW` repeats it.\n"
    atomic_write(path, header + yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))


def read_settings(path: Path) -> Tree:
    """Return the settings that a run folder holds."""
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise FishnetError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise FishnetError(f"{path} is damaged: no mapping of settings")
    check_keys(tree, str(path))
    return tree


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignore: Iterable[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Return (name, before, now) of every setting that differs; tuples and lists of equal values are equal."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
        leaves: Tree = {}
        for name, value in tree.items():
            if isinstance(value, Mapping) and value:
                leaves |= flat(value, f"{prefix}{name}.")
            elif not isinstance(value, Mapping):
                leaves[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
        return leaves

    defaults = flat(dataclasses.asdict(TrainConfig()))
    old, new = {**defaults, **flat(before)}, {**defaults, **flat(now)}
    names = [name for name in dict.fromkeys([*old, *new]) if name not in set(ignore)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
