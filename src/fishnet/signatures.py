"""Names, types, defaults and descriptions of options, from signatures, settings classes and their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import docstring_parser

Function = Callable[..., Any]
DataClass = type[Any]


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument."""

    name: str
    """Full name in Python, such as optim.weight_decay."""
    hint: Any
    """Type."""
    text: str
    """Description, in a sentence or two."""
    default: Any = inspect.Parameter.empty

    @property
    def flag(self) -> str:
        """The option as typed on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Group:
    """Options under one title."""

    title: str
    options: Sequence[Option]


def function_options(function: Function) -> dict[str, Option]:
    """Return the parameters of a function by name, with the text of its docstring."""
    hints = _hints(function)
    texts = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse(function.__doc__ or "").params}
    return {
        name: Option(name, hints.get(name, str), " ".join(texts.get(name, "").split()), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def _hints(function: Function) -> dict[str, Any]:
    """Return the types of the parameters; the return type may be importable only by type checkers."""
    names = {name: hint for name, hint in inspect.get_annotations(function).items() if name != "return"}
    module = inspect.getmodule(function)
    return {name: eval(hint, vars(module)) if isinstance(hint, str) else hint for name, hint in names.items()}


def class_options(kind: DataClass, prefix: str = "") -> Iterator[Option]:
    """Yield the fields of a dataclass with their attribute docstrings; groups of settings are left out."""
    hints, texts = typing.get_type_hints(kind), _attribute_texts(kind)
    for field in dataclasses.fields(kind):
        if not dataclasses.is_dataclass(hints[field.name]):
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Option(prefix + field.name, hints[field.name], texts.get(field.name, ""), default)


def class_groups(kind: DataClass) -> Iterator[Group]:
    """Yield the groups of settings in a dataclass, titled by their name and the summary of their class."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            title = (inner.__doc__ or field.name).strip().splitlines()[0].rstrip(".")
            yield Group(title, list(class_options(inner, f"{field.name}.")))
            yield from class_groups(inner)


def _attribute_texts(kind: DataClass) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            for entry in docstring_parser.parse_from_object(base).params:
                texts[entry.arg_name] = " ".join((entry.description or "").split())
    return texts
