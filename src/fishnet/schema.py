"""Settings classes (nested dataclasses) and trees of settings by name: names, types and allowed values."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from fishnet.cards import REFUSED_OPTIONS
from fishnet.config import Rule, TrainConfig
from fishnet.errors import UsageError
from fishnet.messages import advice_on, plainly
from fishnet.tasks import loaded_tasks

Settings = Mapping[str, Any]
"""Settings by name; groups of settings are mappings themselves."""
Tree = dict[str, Any]
"""Settings by name, mutable."""
ConfigClass = type[Any]
"""Settings class: a dataclass whose fields are settings or groups of settings."""


def groups_of(config: ConfigClass) -> dict[str, ConfigClass]:
    """Return the fields of a settings class that are groups of settings, with their classes."""
    hints = typing.get_type_hints(config)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def setting_names(config: ConfigClass) -> frozenset[str]:
    """Return the full names of all settings of a class, such as optim.lr."""
    groups = groups_of(config)
    names = {field.name for field in dataclasses.fields(config)} - groups.keys()
    return frozenset(names.union(*({f"{name}.{inner}" for inner in setting_names(groups[name])} for name in groups)))


def check_keys(config: ConfigClass, tree: Settings, where: str, prefix: str = "") -> None:
    """Reject unknown settings; the message suggests the nearest names or the task that has them.

    Args:
        config: Settings class.
        tree: Settings by name.
        where: Origin of the settings, for the message.
        prefix: Name of the group that `config` belongs to, with a dot.

    Raises:
        UsageError: An unknown setting.
    """
    groups, known = groups_of(config), [field.name for field in dataclasses.fields(config)]
    for name, value in tree.items():
        if name not in known:
            raise UsageError(f"{where}: unknown setting '{prefix}{name}'.{_advice(f'{prefix}{name}', known)}")
        if name in groups:
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {prefix}{name} must be a mapping of settings")
            check_keys(groups[name], value, where, f"{prefix}{name}.")


def _advice(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown setting: the nearest names, or the task that has it."""
    owners = owners_of(name)
    if owners:
        return f" It is a setting of {' and '.join(owners)}."
    return advice_on(name.rpartition(".")[2], [*known], repr)


def owners_of(name: str) -> list[str]:
    """Return the tasks that have a setting, or a group of settings, of that full name."""
    owners = []
    for kind in loaded_tasks():
        names = setting_names(kind.config)
        if name in names or any(other.startswith(f"{name}.") for other in names):
            owners.append(kind.name)
    return owners


def merge(*trees: Settings) -> Tree:
    """Return all settings together; later ones take precedence, groups of settings merge by name."""
    merged: Tree = {}
    for tree in trees:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                before = merged.get(name)
                merged[name] = merge(before, value) if isinstance(before, Mapping) else merge(value)
            else:
                merged[name] = value
    return merged


def plain_paths(tree: Settings) -> Tree:
    """Return settings with `pathlib` paths as text, also those in groups and lists."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return plain_paths(value)
        if isinstance(value, list | tuple):
            return type(value)(map(plain, value))
        return str(value) if isinstance(value, PurePath) else value

    return {name: plain(value) for name, value in tree.items()}


def settings_parser(config: ConfigClass) -> ArgumentParser:
    """Return the parser of the settings of a class."""
    if config not in _PARSERS:
        _PARSERS[config] = ArgumentParser(exit_on_error=False)
        _PARSERS[config].add_class_arguments(config, as_group=False)
    return _PARSERS[config]


_PARSERS: dict[ConfigClass, ArgumentParser] = {}


def build_config(config: ConfigClass, tree: Settings, where: str) -> Any:
    """Return settings as an object of their class; settings that are not in the tree keep their defaults.

    Raises:
        UsageError: An unknown setting or a value of the wrong type.
    """
    check_keys(config, tree, where)
    tree = _spelled(config, tree)
    _check_plain(config, tree, where)
    parser = settings_parser(config)
    try:
        namespace = parser.parse_object(dict(tree))
        return config(**vars(parser.instantiate(namespace)))
    except (ArgumentError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {plainly(one_line(error), str)}") from None


def _spelled(config: ConfigClass, tree: Settings) -> Tree:
    """Return the settings with single values converted to lists where a list is expected, and the text None to null."""
    hints, groups = typing.get_type_hints(config), groups_of(config)
    spelled: Tree = {}
    for name, value in tree.items():
        if name in groups:
            value = _spelled(groups[name], value)
        elif typing.get_origin(hints[name]) is list and isinstance(value, str | int | float):
            value = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
        elif value in ("None", "none") and type(None) in typing.get_args(hints[name]):
            value = None
        spelled[name] = value
    return spelled


def _check_plain(config: ConfigClass, tree: Settings, where: str) -> None:
    """Reject values that the parser accepts: null for settings that cannot be null, and huge numbers."""
    nullable, keywords = _nullable(config), _keywords(config)
    for name, value in flat(tree).items():
        values = value if isinstance(value, list) else [value]
        free = name.startswith(keywords)
        if None in values and (value is not None or name not in nullable) and not free:
            raise UsageError(f"{where}: {name} must not be null; leave it out to use its default")
        if too_large := [one for one in values if type(one) is int and abs(one) >= 2**63]:
            raise UsageError(f"{where}: {name} is {reprlib.repr(too_large[0])}, which is too large")


def _nullable(config: ConfigClass) -> frozenset[str]:
    """Return the full names of the settings that may be None."""
    return frozenset(name for name, hint in typed_settings(config) if type(None) in typing.get_args(hint))


def _keywords(config: ConfigClass) -> tuple[str, ...]:
    """Return the full names of the settings that are keyword arguments, with a trailing dot; their values are free."""
    return tuple(f"{name}." for name, hint in typed_settings(config) if typing.get_origin(hint) is dict)


def typed_settings(config: ConfigClass, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and type of every setting, in the order of the fields."""
    hints, groups = typing.get_type_hints(config), groups_of(config)
    for field in dataclasses.fields(config):
        if field.name in groups:
            yield from typed_settings(groups[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def check_values(config: TrainConfig, where: str = "") -> None:
    """Check that all settings are within their valid ranges.

    Args:
        config: Settings.
        where: File that they come from, for the message.

    Raises:
        UsageError: A value out of its range.
    """
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
                raise UsageError(f"{prefix}{name} is {reprlib.repr(one)}, which is too large")
    for name, rule in _rules(type(config)):
        if wrong := [one for one in values[name] if one is not None and not rule.holds(one)]:
            raise UsageError(f"{prefix}{name} is {wrong[0]}; it {rule.text}")
    _check_model_options(config)


def _rules(config: ConfigClass, prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """Yield the full name of every setting with a rule, and the rule."""
    for base in config.__mro__:
        for rule, names in vars(base).get("RULES", {}).items():
            yield from ((prefix + name, rule) for name in names.split())
    for name, group in groups_of(config).items():
        yield from _rules(group, f"{prefix}{name}.")


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _check_model_options(config: TrainConfig) -> None:
    """Reject keyword arguments of a model that a card must not contain, or that the task sets."""
    for name in config.model_option:
        if name in REFUSED_OPTIONS:
            raise UsageError(
                f"model_option {name}: weights are not an option of the model; use --weights pretrained for the "
                "published ones, or --weights with a run folder, checkpoint or tag"
            )
        if name in ("num_classes", "in_chans", "features_only", "out_indices"):
            raise UsageError(f"model_option {name}: data and task determine it; leave it out")


def to_plain(config: TrainConfig) -> Tree:
    """Return settings as values that YAML can write."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return value

    return plain(dataclasses.asdict(config))


def flat(tree: Settings, prefix: str = "") -> Tree:
    """Return the settings by their full names, such as optim.lr; tuples become lists."""
    leaves: Tree = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, Mapping):
            leaves[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def tuple_of(value: object) -> object:
    """Return a list as a tuple, since YAML has only lists; return other values unchanged."""
    return tuple(value) if isinstance(value, list) else value


_LONGEST_MESSAGE = 400


def one_line(error: Exception) -> str:
    """Return the message of a library's error as one line of readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
