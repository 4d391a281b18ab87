"""Options that tasks add to commands: training settings, and options of prediction, checks, splits and conversions."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from fishnet.config import SETTING_GROUPS
from fishnet.errors import FishnetError, UsageError
from fishnet.signatures import Group, class_groups, class_options, function_options
from fishnet.tasks import get_task, loaded_tasks, task_names
from fishnet.tasks.base import TaskKind

Hints = dict[str, Any]
"""Types of options by name."""


@dataclass(frozen=True)
class Extension:
    """Options that a task adds to a command: a dataclass, or the parameters of a function."""

    task: str
    source: Any
    skip: frozenset[str] = frozenset()

    def groups(self) -> list[Group]:
        """Return the options in groups, for the help."""
        title = f"Options for {self.task}"
        if not isinstance(self.source, type):
            options = function_options(self.source).values()
            return [Group(title, [option for option in options if option.name not in self.skip])]
        groups = [Group(title, list(class_options(self.source))), *class_groups(self.source)]
        return [group for group in groups if group.options]

    def hints(self) -> Hints:
        """Return the types of the options by their full names, such as optim.lr."""
        if isinstance(self.source, type):
            return class_hints(self.source)
        return {name: option.hint for name, option in function_options(self.source).items() if name not in self.skip}

    def add_to(self, parser: ArgumentParser) -> None:
        """Add the options to a parser, except those whose names it already has."""
        known: set[str | int] = {*(action.dest.partition(".")[0] for action in parser._actions), *self.skip}
        if isinstance(self.source, type):
            parser.add_class_arguments(self.source, as_group=False, skip=known)
        else:
            parser.add_function_arguments(self.source, as_group=False, skip=known)


class Settings(Extension):
    """All settings of a task, as `fishnet train` takes them."""

    def groups(self) -> list[Group]:
        """Return the settings in groups, common ones first."""
        options = {option.name: option for option in class_options(self.source) if option.name not in self.skip}
        shared = {name for names in SETTING_GROUPS.values() for name in names}
        first, *others = [
            Group(title, [options[n] for n in names if n in options]) for title, names in SETTING_GROUPS.items()
        ]
        own = [option for name, option in options.items() if name not in shared]
        return [first, Group(f"Settings of {self.task}", own), *others, *class_groups(self.source)]


def class_hints(kind: type, prefix: str = "") -> Hints:
    """Return the types of all fields of a dataclass, and of the dataclasses in it, by their full names."""
    found: Hints = {}
    for name, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint) and isinstance(hint, type):
            found |= class_hints(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found


def normalize(arguments: Sequence[str], hints: Hints) -> list[str]:
    """Normalize command-line arguments for jsonargparse.

    `--batch-size 8` becomes `--batch_size=8`; a yes/no option without a value means yes, and `--no-NAME` means no;
    `None` means null for options that may be null; lists need no brackets (`--freeze stem,tail`). For options that
    take keyword arguments, `--model-option KEY=VALUE` becomes `--model_option.KEY=VALUE`. Several NAME=VALUE
    arguments after an option of type str are joined into one value: `--data image=DIR1 region=DIR2`.

    Args:
        arguments: Command line.
        hints: Types of the options by name.
    """
    spelled: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            spelled.append(argument)
            continue
        option, equals, value = argument[2:].partition("=")
        option = option.replace("-", "_")
        hint = hints.get(option)
        if dict in _origins(hint) and (equals or (rest and "=" in rest[0])):
            key, _, setting = (value or rest.pop(0)).partition("=")
            spelled.append(f"--{option}.{key}={setting}")
        elif hint is bool and not equals and (not rest or rest[0].lower() not in ("true", "false")):
            spelled.append(f"--{option}=true")
        elif option.startswith("no_") and hints.get(option[3:]) is bool and not equals:
            spelled.append(f"--{option[3:]}=false")
        elif hint is not None and (equals or (rest and not rest[0].startswith("--"))):
            value = value if equals else rest.pop(0)
            is_text = str in _origins(hint) and not _origins(hint) & {list, tuple}
            while is_text and _NAMED.match(value) and rest and _NAMED.match(rest[0]):
                value += f" {rest.pop(0)}"
            spelled.append(f"--{option}={spell_value(value, hint)}")
        else:
            spelled.append(f"--{option}{equals}{value}")
    return spelled


_NAMED = re.compile(r"\w+=.")


def spell_value(text: str, hint: Any) -> str:
    """Return the value of an option in the form that the parser expects; `hint` is the type of the option."""
    origins = _origins(hint)
    if type(None) in origins and text.lower() == "none":
        return "null"
    return f"[{text}]" if not text.startswith("[") and text != "null" and origins & {list, tuple} else text


def _origins(hint: object) -> set[object]:
    """Return the members of a union without type parameters: `int | list[str]` gives `int` and `list`."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {typing.get_origin(kind) or kind for kind in kinds}


def positional(arguments: Sequence[str], hints: Hints) -> list[str]:
    """Return the positional arguments of a command line; `hints` has the types of the options by name."""
    spelled = normalize(arguments, hints)  # a value is joined to its option by "=", unless the option is unknown
    free = [not before.startswith("--") or "=" in before for before in ["", *spelled]]
    return [argument for argument, alone in zip(spelled, free, strict=False) if alone and not argument.startswith("-")]


def task_argument(arguments: Sequence[str], hints: Hints) -> str:
    """Return the task that a command line names: its first positional argument that is one.

    Args:
        arguments: Command line.
        hints: Types of the options by name.

    Raises:
        UsageError: It names none, or an unknown one.
    """
    names, plain = task_names(), positional(arguments, hints)
    named = next((argument for argument in plain if argument in names), None) or next(iter(plain), None)
    if named is None:
        raise UsageError(f"TASK is missing: one of {', '.join(names)}")
    if named not in names and os.path.exists(named):  # noqa: PTH110  a name that is too long is no error
        raise UsageError(f"TASK is missing before {named}: one of {', '.join(names)}")
    return get_task(named).name


def of_every_task(extension: Callable[[TaskKind], Extension | None]) -> Hints:
    """Return the types of the options of all tasks, by name."""
    found: Hints = {}
    for kind in loaded_tasks():
        if (one := extension(kind)) is not None:
            found = {**one.hints(), **found}
    return found


def _settings(kind: TaskKind) -> Extension:
    return Settings(kind.name, kind.config)


def train_settings(arguments: Sequence[str], hints: Hints) -> Iterator[Extension]:
    """Yield the settings of the task to train."""
    yield _settings(get_task(task_argument(arguments, {**of_every_task(_settings), **hints})))


_OF_A_COMPARISON = frozenset({"data", "model", "out", "seed"})
"""Settings that a comparison sets for each of its runs, or that are options of the command itself."""


def compare_settings(arguments: Sequence[str], hints: Hints) -> Iterator[Extension]:
    """Yield the settings of the task, except those that differ between runs."""
    kind = get_task(task_argument(arguments, {**of_every_task(_settings), **hints}))
    yield Settings(kind.name, kind.config, _OF_A_COMPARISON)


def _check(kind: TaskKind) -> Extension | None:
    return kind.check_data and Extension(kind.name, kind.check_data, frozenset({"root", "progress"}))


def check_options(arguments: Sequence[str], hints: Hints) -> Iterator[Extension]:
    """Yield the options of the data check of the given task."""
    kind = get_task(task_argument(arguments, {**of_every_task(_check), **hints}))
    if (found := _check(kind)) is not None:
        yield found


def of_all_tasks(
    part: Callable[[TaskKind], Any], pick: Callable[[str], str | None], *skip: str
) -> Callable[[Sequence[str], Hints], Iterator[Extension]]:
    """Return a function that yields the options of a part of every task.

    If names clash, the options of the current task take precedence.

    Args:
        part: Task -> dataclass or function with the options, or None.
        pick: First positional argument of the command -> task that it is for, or None if unknown.
        skip: Parameters that are not options.
    """

    def extension(kind: TaskKind) -> Extension | None:
        source = part(kind)
        return None if source is None else Extension(kind.name, source, frozenset(skip))

    def extensions(arguments: Sequence[str], hints: Hints) -> Iterator[Extension]:
        hints = {**of_every_task(extension), **hints}
        spelled = normalize(arguments, hints)
        named = next((argument.partition("=")[2] for argument in spelled if argument.startswith("--task=")), None)
        plain = positional(arguments, hints)
        if named is None and plain:
            named = pick(plain[0])
        found = [one for kind in loaded_tasks() if (one := extension(kind)) is not None]
        yield from sorted(found, key=lambda one: one.task != named)

    return extensions


def _task_of_model(source: str) -> str | None:
    """Return the task of a run folder or model file, or None if it is not recorded."""
    from fishnet.cards import read_card
    from fishnet.exported import exported_card, is_exported
    from fishnet.runs import RunFolder

    if is_exported(source):
        try:
            return exported_card(Path(source)).task
        except FishnetError:  # reported when the folder is loaded
            return None
    path = RunFolder(Path(source)).model_file if Path(source).is_dir() else Path(source)
    try:
        card = read_card(path) if path.suffix == ".safetensors" and path.is_file() else None
    except FishnetError:  # reported when the file is loaded
        return None
    return None if card is None else card.task


def _task_of_data(recognizer: Callable[[TaskKind], Callable[[Path], bool] | None]) -> Callable[[str], str | None]:
    def pick(folder: str) -> str | None:
        kinds = [kind for kind in loaded_tasks() if (fits := recognizer(kind)) is not None and fits(Path(folder))]
        return kinds[0].name if kinds else None

    return pick


split_options = of_all_tasks(
    lambda kind: kind.split_data, _task_of_data(lambda kind: kind.can_split), "root", "progress"
)
convert_options = of_all_tasks(
    lambda kind: kind.convert_data, _task_of_data(lambda kind: kind.can_convert), "source", "dest", "progress"
)
answer_options = of_all_tasks(lambda kind: kind.options, _task_of_model)
evaluation_options = of_all_tasks(lambda kind: kind.evaluation_options, _task_of_model)
