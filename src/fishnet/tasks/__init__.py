"""Registry of tasks. `BUILT_IN` is the only list of them; all other code calls `get_task`.

Other packages add tasks by an entry point of the group `fishnet.tasks` that refers to a `TaskKind`:

    [project.entry-points."fishnet.tasks"]
    depth = "my_package.depth:TASK"
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from fishnet.cards import ModelCard
from fishnet.errors import FishnetError, UsageError, did_you_mean, refuse_options
from fishnet.tasks.base import AnyTask, TaskKind

BUILT_IN = {
    "classification": "fishnet.tasks.classification",
    "detection": "fishnet.tasks.detection",
    "segmentation": "fishnet.tasks.segmentation",
    "multitask": "fishnet.tasks.multitask",
}
"""Module of each task of this package; it defines `TASK`."""
ENTRY_POINTS = "fishnet.tasks"


def task_names() -> list[str]:
    """Return the names of all tasks, those of other packages last."""
    return [*BUILT_IN, *(name for name in sorted(_others()) if name not in BUILT_IN)]


@cache
def get_task(name: str) -> TaskKind:
    """Return a task by its name; its module is imported on the first call.

    Raises:
        UsageError: There is no such task, or its package cannot be imported.
    """
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name]).TASK
    others = _others()
    if name not in others:
        names = task_names()
        raise UsageError(f"unknown task {name!r}.{did_you_mean(name, names)} Tasks: {', '.join(names)}")
    entry = others[name]
    try:
        kind = entry.load()
    except Exception as error:  # a third-party package may raise anything when it is imported
        raise UsageError(f"task {name!r} cannot be loaded from {entry.value}: {error}") from error
    if not isinstance(kind, TaskKind) or kind.name != name:
        raise UsageError(f"task {name!r}: {entry.value} must be a TaskKind with that name")
    return kind


@cache
def loaded_tasks() -> tuple[TaskKind, ...]:
    """Return all tasks whose packages can be imported; the others are reported once on standard error.

    A broken third-party package must not break the commands of all other tasks.
    """
    kinds = []
    for name in task_names():
        try:
            kinds.append(get_task(name))
        except UsageError as error:
            print(f"fishnet: warning: {error}", file=sys.stderr, flush=True)
    return tuple(kinds)


def make_task(card: ModelCard, **options: Any) -> AnyTask:
    """Return the task of a card, for evaluation and prediction.

    Args:
        card: Card of a network.
        options: Prediction options, see `fishnet predict --help`; None means the default.

    Raises:
        UsageError: An option that the task does not have.
        FishnetError: A task that is not installed.
    """
    try:
        kind = get_task(card.task)
    except UsageError as error:
        raise FishnetError(f"the model needs a task that is not installed: {error}") from None
    return kind.make_task(card, _as_dataclass(kind.options, options, card.task))


def _as_dataclass(kind: type[Any], values: Mapping[str, Any], owner: str, prefix: str = "") -> Any:
    """Return a dataclass from values by name, with nested dataclasses as mappings; None means the default.

    Raises:
        UsageError: A name that is not a field.
    """
    hints = typing.get_type_hints(kind)
    given = {name: value for name, value in values.items() if value is not None}
    known = [prefix + field.name for field in dataclasses.fields(kind)]
    refuse_options([prefix + name for name in given], known, owner)
    for name, value in given.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            given[name] = _as_dataclass(hints[name], value, owner, f"{prefix}{name}.")
    return kind(**given)


def _others() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}


__all__ = ["BUILT_IN", "ENTRY_POINTS", "TaskKind", "get_task", "loaded_tasks", "make_task", "task_names"]
