"""Settings from recipes, YAML files, command lines and run folders, checked against `TrainConfig`."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import reprlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    return root / task


def list_recipes(task: str = "classification") -> list[str]:
    """Return the names of a task's built-in recipes."""
    names = (entry.name for entry in _recipe_folder(task).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def default_recipe(task: str, settings: Mapping[str, Any]) -> str | None:
    """Return the recipe of a run that names none; classification has settings of its own without one."""
    if task == "detection":
        return "finetune" if settings.get("weights") else "scratch_small"
    return None


def read_recipe(recipe: str, task: str = "classification", detector: str | None = None) -> Tree:
    """Return the settings of a task's built-in recipe or of a YAML file.

    A recipe may hold a group `by_detector` of settings that differ from detector to detector, such as a learning rate:
    those of the detector in use replace what the recipe says otherwise.

    Args:
        recipe: Name of a built-in recipe, or a YAML file.
        task: Whose recipes.
        detector: Detector in use; None takes the recipe's, or the default.

    Raises:
        UsageError: No recipe or file of that name, or a file that is no mapping of known settings.
    """
    known = list_recipes(task)
    if recipe in known:
        tree = parse_settings((_recipe_folder(task) / f"{recipe}.yaml").read_bytes(), recipe)
    elif os.path.isfile(recipe):  # noqa: PTH113  a name that is too long is no error
        tree = parse_settings(Path(recipe).read_bytes(), recipe)
    else:
        raise UsageError(
            f"unknown recipe {recipe!r}: neither a file nor one of {', '.join(known)}.{did_you_mean(recipe, known)}"
        )
    special = _by_detector(tree.pop(BY_DETECTOR, {}), recipe)
    check_keys(tree, recipe)
    return merge(tree, special.get(str(detector or tree.get("detector", TrainConfig.detector)), {}))


BY_DETECTOR = "by_detector"


def _by_detector(groups: Any, where: str) -> dict[str, Tree]:
    """Return the settings that a recipe has for each of some detectors, checked."""
    known = typing.get_args(typing.get_type_hints(TrainConfig)["detector"])
    if not isinstance(groups, dict):
        raise UsageError(f"{where}: {BY_DETECTOR} must be a mapping from detectors to settings")
    for name, tree in groups.items():
        if name not in known:
            raise UsageError(f"{where}: unknown detector {name!r} in {BY_DETECTOR}.{did_you_mean(str(name), known)}")
        if not isinstance(tree, dict) or "detector" in tree:
            raise UsageError(f"{where}: {BY_DETECTOR}.{name} must be a mapping of settings other than detector")
        check_keys(tree, f"{where}, {BY_DETECTOR}.{name}")
    return groups


def parse_settings(content: bytes, where: str) -> Tree:
    """Return the mapping that a YAML file holds; an empty one where the file is empty.

    Raises:
        UsageError: It is no YAML, no mapping, or refers to itself.
    """
    try:
        tree = yaml.safe_load(content.decode("utf-8"))
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # the last ones come out of PyYAML's constructors, for a month 13 and the like
        raise UsageError(f"{where} is no valid YAML: {one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{where} is no mapping of settings")
    waiting, count = [tree], 0
    while waiting and count < _MOST_VALUES:  # aliases can make a short file endless
        node = waiting.pop()
        count += 1
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    if waiting:
        raise UsageError(f"{where} holds more than {_MOST_VALUES} values; no settings are as long")
    return tree


_MOST_VALUES = 100_000
_LONGEST_MESSAGE = 400


def one_line(error: Exception) -> str:
    """Return what an error of a library says as one line that is not too long to be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


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


@cache
def settings_parser() -> ArgumentParser:
    """Return the parser of all settings, as long options without the leading dashes' aliases."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def build_config(tree: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the settings as a checked dataclass; what the tree leaves out has its default.

    Raises:
        UsageError: An unknown setting or a value of the wrong type.
    """
    check_keys(tree, where)
    _check_plain(tree, where)
    parser = settings_parser()
    try:
        namespace = parser.parse_object(dict(tree))
        return TrainConfig(**vars(parser.instantiate(namespace)))
    except (ArgumentError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {one_line(error)}") from None


def _check_plain(tree: Mapping[str, Any], where: str) -> None:
    """Refuse what the parser of settings lets through: null where there is no such choice, and endless numbers."""
    for name, value in flat(tree).items():
        values = value if isinstance(value, list) else [value]
        if None in values and (value is not None or name not in _nullable()) and not name.startswith("model_option."):
            raise UsageError(f"{where}: {name} must not be null; leave it out to have its default")
        if too_large := [one for one in values if type(one) is int and abs(one) >= 2**63]:
            raise UsageError(f"{where}: {name} is {reprlib.repr(too_large[0])}; no number as large works there")


@cache
def _nullable() -> frozenset[str]:
    """Return the full names of the settings that may be None."""

    def names(kind: type, prefix: str) -> Iterator[str]:
        for name, hint in typing.get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                yield from names(hint, f"{prefix}{name}.")
            elif type(None) in typing.get_args(hint):
                yield prefix + name

    return frozenset(names(TrainConfig, ""))


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
    detector = settings.get("detector")
    chosen = read_recipe(recipe, task, detector) if recipe else {}
    if recipe and base and not detector and "detector" not in chosen:
        chosen = read_recipe(recipe, task, base.get("detector"))
    named, own = (chosen, {}) if recipe in list_recipes(task) else ({}, chosen)
    tree = merge(base or {}, named, own, settings)
    if base is None or recipe is not None:
        tree = merge(base or {}, named, {"preprocess": weights_preprocessing(tree, task)}, own, settings)
    tree["weights"] = _tag_of(tree)
    try:
        config = build_config(tree, "settings")
        check_values(config)
    except UsageError:
        if recipe:  # name the file, where it is at fault
            check_values(build_config(chosen, recipe), recipe)
        raise
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
    from fishnet.loading import preprocessing_of_weights

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


_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "must be at least 1",
        lambda value: value >= 1,
        "epochs batch_size accumulate size longest devices nodes log_every validate_every max_steps augment.grow_from "
        "optim.step_epochs optim.step_at heads.width heads.box_width heads.mask_width heads.mask_layers "
        "heads.keypoint_width heads.tower_layers heads.proposals heads.samples heads.detections region.short_edges",
    ),
    (
        "must not be negative",
        lambda value: value >= 0,
        "workers checkpoint_minutes augment.pad augment.mixup augment.cutmix augment.mix_off_epochs "
        "optim.weight_decay optim.warmup_epochs optim.final_lr region.mix_off_epochs",
    ),
    (
        "must be positive",
        lambda value: value > 0,
        "lr optim.lr optim.step_gamma optim.layer_decay optim.clip_grad augment.grow_share heads.anchor_scale "
        "heads.aspect_ratios",
    ),
    (
        "must lie between 0 and 1",
        lambda value: 0 <= value <= 1,
        "augment.mix_probability heads.score heads.nms region.repeat_threshold",
    ),
    ("must be at least 0 and below 1", lambda value: 0 <= value < 1, "label_smoothing drop_rate optim.momentum"),
    ("must lie between 0 and 1, such as 0.999", lambda value: 0 < value < 1, "ema"),
)
"""What must hold for numbers, and for every number of a list: what to say, whether it holds, names of settings."""


def check_values(config: TrainConfig, where: str = "") -> None:
    """Refuse values that no run can work with; `where` names the file that they come from."""
    prefix = f"{where}: " if where else ""
    values: dict[str, list[Any]] = {}
    for name, value in flat(dataclasses.asdict(config)).items():
        values[name] = value if isinstance(value, list) else [value]
        for one in values[name]:
            if isinstance(one, str) and _UNPRINTABLE.search(one):
                raise UsageError(f"{prefix}{name} is {one[:80]!a}; it must be text of one line")
            if isinstance(one, float) and not math.isfinite(one):
                raise UsageError(f"{prefix}{name} is {one}; it must be a finite number")
            if type(one) is int and abs(one) >= (2**63 if name == "seed" else 2**31):
                raise UsageError(f"{prefix}{name} is {reprlib.repr(one)}; no number as large works there")
    for text, holds, names in _RULES:
        for name in names.split():
            if wrong := [one for one in values[name] if one is not None and not holds(one)]:
                raise UsageError(f"{prefix}{name} is {wrong[0]}; it {text}")
    _check_model_options(config)


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _check_model_options(config: TrainConfig) -> None:
    """Refuse keywords of a model that no card may hold, or that the task sets."""
    from fishnet.cards import REFUSED_OPTIONS

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
        tree = parse_settings(path.read_bytes(), str(path))
    except UsageError as error:
        raise FishnetError(f"{error}: it is damaged") from None
    if not tree:
        raise FishnetError(f"{path} is damaged: it is empty")
    check_keys(tree, str(path))
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Return the settings by their full names, such as optim.lr; tuples become lists."""
    leaves: Tree = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, Mapping):
            leaves[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignore: Iterable[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Return (name, before, now) of every setting that differs; tuples and lists of equal values are equal."""
    defaults = flat(dataclasses.asdict(TrainConfig()))
    old, new = {**defaults, **flat(before)}, {**defaults, **flat(now)}
    names = [name for name in dict.fromkeys([*old, *new]) if name not in set(ignore)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
