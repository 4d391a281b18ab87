"""Kinds of heads by name. A module of this package registers its own; other packages add theirs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models import heads
from fishnet.models.heads.types import HeadPlan
from fishnet.models.pyramid import Pyramid
from fishnet.models.trunk import Trunk

Plan = TypeVar("Plan", bound=HeadPlan)


class HeadKind(NamedTuple, Generic[Plan]):
    """How heads of one kind are described and built."""

    plan: type[Plan]
    """Frozen dataclass with the field `kind`, and `num_classes` if the head predicts classes."""
    build: Callable[[Plan, Trunk], tuple[Pyramid | None, nn.Module]]
    """Plan and trunk -> neck (None if the head needs none) and head."""
    check: Callable[[Plan], None] | None = None
    """Raises UsageError for a plan from which no head can be built."""
    takes: Literal["maps", "vector"] = "maps"
    """Input of the head: maps, those of its neck if it has one, or the pooled features of the trunk."""


CLASSIFIER = "classifier"
"""Kind of the heads that take over the last layer of the backbone; the only one that is not registered."""
HEADS: dict[str, HeadKind[Any]] = {}
"""Kinds that are registered so far; use `head_kind` to look one up."""


def register_head(name: str, kind: HeadKind[Plan]) -> None:
    """Register a kind of head, for plans with `kind=name`.

    Args:
        name: Value of `kind` in the plans.
        kind: How the heads are described and built.

    Raises:
        UsageError: Another kind is registered under the name.
    """
    if name == CLASSIFIER or HEADS.get(name, kind) != kind:
        raise UsageError(f"a head named {name!r} is already registered; choose another name")
    HEADS[name] = kind


def head_kind(name: object) -> HeadKind[Any]:
    """Return a kind of head by its name; modules that register kinds are imported on demand.

    Raises:
        UsageError: There is no such kind; names the packages that could not be imported.
    """
    problems = ""
    if name not in HEADS:
        import_modules(heads)
    if name not in HEADS:
        problems = _load_other_tasks()
    if name not in HEADS:
        known = [CLASSIFIER, *HEADS]
        near = did_you_mean(str(name), known)
        raise UsageError(f"unknown head {name!r}.{near} Known are {', '.join(known)}{problems}")
    return HEADS[str(name)]


def import_modules(package: ModuleType) -> None:
    """Import all modules of a package, which register what they define."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def _load_other_tasks() -> str:
    """Import the tasks of other packages, which registers their heads; return which could not be imported."""
    problems = []
    for entry in metadata.entry_points(group="fishnet.tasks"):
        try:
            entry.load()
        except Exception as error:  # a third-party package may raise anything when it is imported
            problems.append(f"; {entry.value} cannot be imported: {error}")
    return "".join(problems)
