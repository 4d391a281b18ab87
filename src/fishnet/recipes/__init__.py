"""Recipes: YAML files with the settings of a run. Those of a task are in its own package below this one."""

from __future__ import annotations

import dataclasses
import os
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fishnet.config import TrainConfig
from fishnet.errors import UsageError, did_you_mean
from fishnet.schema import Settings, Tree, check_keys, flat, merge, one_line, typed_settings
from fishnet.tasks.base import TaskKind


def list_recipes(kind: TaskKind) -> list[str]:
    """Return the names of the built-in recipes of a task."""
    names = (entry.name for entry in resources.files(kind.recipes).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_text(kind: TaskKind, name: str) -> str:
    """Return the YAML text of a built-in recipe."""
    return resources.files(kind.recipes).joinpath(f"{name}.yaml").read_text("utf-8")


def read_recipe(kind: TaskKind, recipe: str, given: Settings) -> Tree:
    """Return the settings of a built-in recipe of a task or of a YAML file.

    A recipe may have groups `by_<setting>`, such as `by_detector` or `by_optim.name`, with settings for some values of
    that setting. Those for the value in use replace what the recipe says otherwise. Where the data decides, the value
    in use is `auto`.

    Args:
        kind: Task whose recipes are known by name.
        recipe: Name of a built-in recipe, or a YAML file.
        given: Settings that take precedence over the recipe.

    Raises:
        UsageError: There is no such recipe or file, or it is not a mapping of known settings.
    """
    known = list_recipes(kind)
    if recipe in known:
        tree = parse_settings(resources.files(kind.recipes).joinpath(f"{recipe}.yaml").read_bytes(), recipe)
    elif os.path.isfile(recipe):  # noqa: PTH113  a name that is too long is no error
        tree = parse_settings(Path(recipe).read_bytes(), recipe)
    else:
        raise UsageError(
            f"unknown recipe {recipe!r}: neither a file nor a recipe of {kind.name} ({', '.join(known)})."
            f"{did_you_mean(recipe, known)}"
        )
    task = tree.pop(TASK_KEY, kind.name)
    if task != kind.name:
        raise UsageError(f"{recipe} contains settings of {task}, not of {kind.name}")
    special = {name: tree.pop(name) for name in list(tree) if str(name).startswith(_BY)}
    check_keys(kind.config, tree, recipe)
    for name, groups in special.items():
        setting = name.removeprefix(_BY)
        cases = _cases(kind.config, setting, groups, recipe)
        value = flat(merge(dataclasses.asdict(kind.config()), tree, given))[setting]
        tree = merge(tree, cases.get(str(value), {}))
    return tree


_BY = "by_"
TASK_KEY = "task"
"""Entry of a file of settings that says which task they are for."""


def _cases(config: type[TrainConfig], setting: str, groups: Any, where: str) -> dict[str, Tree]:
    """Return the settings that a recipe has for each of some values of a setting, checked."""
    hint = dict(typed_settings(config)).get(setting)
    known = typing.get_args(hint)
    if not known and hint is not str:
        raise UsageError(f"{where}: {_BY}{setting} needs a setting whose values are words")
    if not isinstance(groups, dict):
        raise UsageError(f"{where}: {_BY}{setting} must be a mapping from values of {setting} to settings")
    for name, tree in groups.items():
        if known and name not in known:
            near = did_you_mean(str(name), known)
            raise UsageError(f"{where}: unknown {setting} {name!r} in {_BY}{setting}.{near}")
        if not isinstance(tree, dict) or setting in flat(tree):
            raise UsageError(f"{where}: {_BY}{setting}.{name} must be a mapping of settings other than {setting}")
        check_keys(config, tree, f"{where}, {_BY}{setting}.{name}")
    return groups


def parse_settings(content: bytes, where: str) -> Tree:
    """Return the mapping of a YAML file; an empty file is an empty mapping.

    Raises:
        UsageError: It is not YAML, not a mapping, or refers to itself.
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
        raise UsageError(f"{where} is not valid YAML: {one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{where} must be a mapping of settings")
    waiting, count = [tree], 0
    while waiting and count < _MOST_VALUES:  # aliases can make a short file endless
        node = waiting.pop()
        count += 1
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    if waiting:
        raise UsageError(f"{where} has more than {_MOST_VALUES} values; settings are never that long")
    return tree


_MOST_VALUES = 100_000
