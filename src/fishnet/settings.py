"""Resolve, save and compare the settings of a run."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fishnet.config import TrainConfig
from fishnet.errors import FishnetError, UsageError, quoted
from fishnet.files import atomic_write
from fishnet.models.config import VARIANTS, FishConfig
from fishnet.models.create import PUBLISHED, published_weights
from fishnet.preprocessing import model_of_weights, preprocessing_of_weights
from fishnet.recipes import TASK_KEY, list_recipes, parse_settings, read_recipe
from fishnet.runs import RunFolder
from fishnet.schema import (
    ConfigClass,
    Settings,
    Tree,
    build_config,
    check_keys,
    check_values,
    flat,
    groups_of,
    merge,
    to_plain,
    tuple_of,
)
from fishnet.signatures import class_options
from fishnet.tasks.base import TaskKind


def resolve(kind: TaskKind, recipe: str | None, settings: Settings, base: Tree | None = None) -> Any:
    """Return the settings of a run, an object of `kind.config`.

    In increasing order of precedence: defaults, settings of a saved run (`base`), a built-in recipe, the preprocessing
    of the weights to start from, a recipe file, and explicit settings. The weights override a built-in recipe, which is
    written without knowing them, but not a recipe file, such as the `config.yaml` of a run.

    Args:
        kind: Task.
        recipe: Name of a built-in recipe, a YAML file, or None.
        settings: Explicit settings.
        base: Settings of the run that is resumed.
    """
    check_keys(kind.config, settings, "settings")
    chosen = read_recipe(kind, recipe, settings) if recipe else {}
    if recipe and base:
        chosen = read_recipe(kind, recipe, {**base, **chosen, **settings})
    named, own = (chosen, {}) if recipe in list_recipes(kind) else ({}, chosen)
    named = _without_fish_options(named, str(settings.get("model") or named.get("model") or ""))
    tree = merge(base or {}, named, own, settings)
    if base is None or recipe is not None:
        prepared = {"preprocess": weights_preprocessing(kind.config, tree)}
        tree = merge(base or {}, named, prepared, own, settings)
    model, weights = _model_and_weights(tree)
    tree.setdefault("model", model)
    tree["weights"] = published_weights(model) if weights == PUBLISHED else weights
    try:
        config = build_config(kind.config, tree, "settings")
        check_values(config)
    except UsageError:
        if recipe:  # name the file if the error is in it
            check_values(build_config(kind.config, chosen, recipe), recipe)
        raise
    return config


def _without_fish_options(recipe: Tree, model: str) -> Tree:
    """Return a built-in recipe without the options that only a FishNet has, such as the stride of the stem."""
    if not model or model.partition(".")[0] in VARIANTS or "model_option" not in recipe:
        return recipe
    own = {field.name for field in dataclasses.fields(FishConfig)} - {"drop_path_rate"}
    kept = {name: value for name, value in recipe["model_option"].items() if name not in own}
    return {**recipe, "model_option": kept}


def _model_and_weights(tree: Settings) -> tuple[str, str | None]:
    """Return backbone and weights; the backbone defaults to that of the weights, if known."""
    weights = tree.get("weights")
    return str(tree.get("model") or model_of_weights(weights) or TrainConfig.model), weights


def weights_preprocessing(config: ConfigClass, tree: Settings) -> Tree:
    """Return the preprocessing that a run takes from its initial weights; {} if they do not determine it.

    Args:
        config: Settings class; only the fields of its `preprocess` are taken.
        tree: Settings with `model` and `weights`.
    """
    known = {field.name for field in dataclasses.fields(groups_of(config)["preprocess"])}
    found = preprocessing_of_weights(*_model_and_weights(tree))
    return {name: value for name, value in found.items() if name in known}


def describe_preprocessing(config: TrainConfig) -> str | None:
    """Return a line on the preprocessing taken from the weights and that set explicitly, or None if there is none."""
    found = weights_preprocessing(type(config), vars(config))
    used = {name: getattr(config.preprocess, name) for name in found}
    parts = []
    for title, same in (("taken over", True), ("set explicitly", False)):
        names = [name for name, value in found.items() if (tuple_of(used[name]) == tuple_of(value)) is same]
        if names:
            parts.append(f"{title}: {', '.join(f'{name} {used[name]}' for name in names)}")
    return f"preprocessing of the weights {config.weights}, {'; '.join(parts)}" if parts else None


def _path_changed(text: str, change: Callable[[str], str]) -> str:
    """Return a data or weights setting with its path changed; in NAME=DIR1 NAME=DIR2, with all of its paths."""
    parts = [text] if Path(text).exists() else re.split(r"([,\s]+(?=\w+=))", text)
    for place in range(0, len(parts), 2):  # separators are in between
        named = _NAMED.fullmatch(parts[place])
        parts[place] = named[1] + change(named[2]) if named else change(parts[place])
    return "".join(parts)


_NAMED = re.compile(r"(\w+=)(.+)")
_PATHS = ("data", "weights")
"""Settings that are paths; weights may be a tag instead."""


def data_of(run: str | Path) -> str:
    """Return the data folder that a run was trained on.

    Raises:
        UsageError: The run does not record it.
    """
    file = RunFolder(Path(run)).config_yaml
    data = parse_settings(file.read_bytes(), str(file)).get("data") if file.is_file() else None
    if not data:
        raise UsageError(f"--data DIR is missing: {run} does not record the data it was trained on")
    return str(data)


def data_folders(data: str) -> list[Path]:
    """Return the folders that the setting `data` names: one, or several as NAME=DIR1 NAME=DIR2."""
    found: list[Path] = []

    def note(text: str) -> str:
        found.append(Path(text))
        return text

    _path_changed(data, note)
    return found


_DATA_NAMES = ("train", "val", "test", "images", "labels", "masks", "annotations")
"""Beginnings of the names of folders that contain data."""


def refuse_inside_data(out: Path, data: str) -> None:
    """Raise UsageError for an output folder where its images would become data: a data folder or a split of one.

    Other folders below the data are fine, such as `runs` where training is started in the data folder.
    """
    for folder in data_folders(data):
        if not out.resolve().is_relative_to(folder.resolve()):
            continue
        below = out.resolve().relative_to(folder.resolve()).parts
        if not below or below[0].lower().startswith(_DATA_NAMES):
            raise UsageError(f"--out {out} is inside the data folder {folder}; choose a folder outside of it")


def comparable(name: str, value: object) -> object:
    """Return the value of a setting such that two paths of one file or folder are equal."""
    return _path_changed(value, os.path.realpath) if name in _PATHS and isinstance(value, str) and value else value


def _with_absolute_paths(tree: Tree) -> Tree:
    """Return settings with absolute paths of the data and of weights that are a file or a run."""

    def absolute(text: str) -> str:
        return os.path.abspath(text) if Path(text).exists() else text  # noqa: PTH100  symbolic links are kept

    return {n: _path_changed(v, absolute) if n in _PATHS and isinstance(v, str) and v else v for n, v in tree.items()}


def save_settings(path: Path, task: str, config: TrainConfig) -> None:
    """Write config.yaml of a run folder; its paths are absolute, so that the run can be used from any folder."""
    header = f"# All settings of this run; `fishnet train {task} --recipe {path.name} --out NEW` repeats it.\n"
    tree = {TASK_KEY: task, **_with_absolute_paths(to_plain(config))}
    atomic_write(path, header + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def commented_settings(task: str, recipe: str, config: TrainConfig) -> str:
    """Return settings as YAML with the meaning of each as a comment.

    Args:
        task: Name of the task.
        recipe: Name of the recipe, for the header.
        config: Settings.
    """
    lines = [f"# Settings of {task} from the recipe {recipe}; `fishnet train {task} --recipe THIS_FILE ...` uses them."]
    lines += [f"{TASK_KEY}: {task}", *_commented(type(config), to_plain(config), "")]
    return "\n".join(lines) + "\n"


def _commented(kind: ConfigClass, tree: Tree, indent: str) -> Iterator[str]:
    groups = groups_of(kind)
    for option in class_options(kind):
        if option.text:
            yield from textwrap.wrap(option.text, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = yaml.safe_dump(tree[option.name], default_flow_style=True, allow_unicode=True, width=1000)
        value = value.strip().removesuffix("...").strip()  # YAML's document end marker after a plain value
        yield f"{indent}{option.name}: {value}"
    for name, group in groups.items():
        yield from ("", f"{indent}# {(group.__doc__ or name).strip().splitlines()[0]}", f"{indent}{name}:")
        yield from _commented(group, tree[name], indent + "  ")


def read_task(path: Path) -> str:
    """Return the task of a run.

    Args:
        path: config.yaml.

    Raises:
        FishnetError: The file is missing or damaged, or does not name the task.
    """
    try:
        task = parse_settings(path.read_bytes(), str(path)).get(TASK_KEY)
    except FileNotFoundError:
        raise FishnetError(f"{path.parent} does not contain a run (no {path.name})") from None
    except UsageError as error:
        raise FishnetError(f"{error}: it is damaged") from None
    if not isinstance(task, str):
        raise FishnetError(f"{path} does not name its task; give it: fishnet train TASK --resume {quoted(path.parent)}")
    return task


def read_settings(path: Path, config: ConfigClass) -> Tree:
    """Return the settings of a run folder.

    Args:
        path: config.yaml.
        config: Settings class of the task.

    Raises:
        FishnetError: The file is damaged.
        UsageError: It has settings that this task does not have.
    """
    try:
        tree = parse_settings(path.read_bytes(), str(path))
    except UsageError as error:
        raise FishnetError(f"{error}: it is damaged") from None
    if not tree:
        raise FishnetError(f"{path} is damaged: it is empty")
    tree.pop(TASK_KEY, None)
    check_keys(config, tree, str(path))
    return tree


def differences(before: Settings, now: TrainConfig, ignore: Iterable[str] = ()) -> list[tuple[str, Any, Any]]:
    """Return (name, before, now) of every setting that differs; tuples equal lists of the same values, and a path
    equals others of the same folder."""
    defaults = flat(dataclasses.asdict(type(now)()))
    old, new = {**defaults, **flat(before)}, flat(dataclasses.asdict(now))
    names = [name for name in dict.fromkeys([*old, *new]) if name not in set(ignore)]
    values = [(name, old.get(name), new.get(name)) for name in names]
    return [entry for entry in values if comparable(entry[0], entry[1]) != comparable(entry[0], entry[2])]
