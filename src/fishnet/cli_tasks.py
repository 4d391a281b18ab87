"""Options that tasks add to commands: settings, options of answers, of checks, of splits and of conversions."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

from jsonargparse import ArgumentParser

from fishnet.cli_help import Group, class_groups, class_options, function_options
from fishnet.config import SETTING_GROUPS
from fishnet.errors import UsageError
from fishnet.tasks import get_task, loaded_tasks, task_names
from fishnet.tasks.base import TaskKind


@dataclass(frozen=True)
class Extension:
    """Options that a task adds to a command: a dataclass, or the parameters of a function."""

    task: str
    source: Any
    skip: frozenset[str] = frozenset()

    def groups(self) -> list[Group]:
        """Return the options in groups, for the help."""
        title = f"Options for {self.task}"
        found = class_options(self.source) if isinstance(self.source, type) else function_options(self.source).values()
        return [Group(title, [option for option in found if option.name not in self.skip])]

    def add_to(self, parser: ArgumentParser) -> set[str]:
        """Add the options to a parser and return the names of those that are flags."""
        known: set[str | int] = {*(action.dest for action in parser._actions), *self.skip}
        if isinstance(self.source, type):
            parser.add_class_arguments(self.source, as_group=False, skip=known)
            return boolean_settings(self.source)
        parser.add_function_arguments(self.source, as_group=False, skip=known)
        return {option.name for option in function_options(self.source).values() if option.hint is bool}


class Settings(Extension):
    """All settings of a task, as `fishnet train` takes them."""

    def groups(self) -> list[Group]:
        """Return the settings in groups, common ones first."""
        options = {option.name: option for option in class_options(self.source)}
        shared = {name for names in SETTING_GROUPS.values() for name in names}
        first, *others = [Group(title, [options[n] for n in names]) for title, names in SETTING_GROUPS.items()]
        own = [option for name, option in options.items() if name not in shared]
        return [first, Group(f"Settings of {self.task}", own), *others, *class_groups(self.source)]


def boolean_settings(kind: type, prefix: str = "") -> set[str]:
    """Return the names of all yes/no fields of a dataclass and of the dataclasses in it."""
    names: set[str] = set()
    for name, hint in typing.get_type_hints(kind).items():
        if hint is bool:
            names.add(prefix + name)
        elif is_dataclass(hint) and isinstance(hint, type):
            names |= boolean_settings(hint, f"{prefix}{name}.")
    return names


def positional(arguments: list[str]) -> list[str]:
    """Return the arguments that do not follow an option, whose values they may be."""
    free = [not before.startswith("--") or "=" in before for before in ["", *arguments]]
    return [argument for argument, alone in zip(arguments, free, strict=False) if alone]


def task_argument(arguments: list[str]) -> str:
    """Return the task that a command line names.

    Raises:
        UsageError: It names none, or an unknown one.
    """
    names, plain = task_names(), positional(arguments)
    named = next((argument for argument in [*plain, *arguments] if argument in names), None)
    named = named or next((argument for argument in plain if not argument.startswith("-")), None)
    if named is None:
        raise UsageError(f"TASK is missing: one of {', '.join(names)}")
    return get_task(named).name


def train_settings(arguments: list[str]) -> Iterator[Extension]:
    """Yield the settings of the task that is trained."""
    kind = get_task(task_argument(arguments))
    yield Settings(kind.name, kind.config)


def check_options(arguments: list[str]) -> Iterator[Extension]:
    """Yield the options of the data check of the task that is named."""
    kind = get_task(task_argument(arguments))
    if kind.check_data is not None:
        yield Extension(kind.name, kind.check_data, frozenset({"root", "progress"}))


def of_all_tasks(part: Callable[[TaskKind], Any], *skip: str) -> Callable[[list[str]], Iterator[Extension]]:
    """Return what yields the options of a part of every task.

    Args:
        part: Task -> dataclass or function with the options, or None.
        skip: Parameters that are not options.
    """

    def extensions(arguments: list[str]) -> Iterator[Extension]:
        for kind in loaded_tasks():
            if (source := part(kind)) is not None:
                yield Extension(kind.name, source, frozenset(skip))

    return extensions


split_options = of_all_tasks(lambda kind: kind.split_data, "root", "progress")
convert_options = of_all_tasks(lambda kind: kind.convert_data, "source", "dest")
answer_options = of_all_tasks(lambda kind: kind.options)
