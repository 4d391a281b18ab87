"""Help of the command line as text."""

from __future__ import annotations

import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence

from fishnet.signatures import Group, Option

WIDTH = 112
_INDENT = 26


def render(usage: str, summary: str, groups: Sequence[Group], positional: Sequence[Option] = ()) -> str:
    """Return the help of a command as text.

    Args:
        usage: Usage line.
        summary: Description of the command.
        groups: Groups of options, the most common first.
        positional: Positional arguments.
    """
    width = max(60, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    lines = [f"usage: {usage}", "", *textwrap.wrap(summary, width)]
    if positional:
        lines += ["", "Arguments:"]
        for argument in positional:
            lines += _entry(argument.name.upper(), argument.text, width)
    for group in groups:
        lines += ["", f"{group.title}:"]
        for option in group.options:
            lines += _entry(" ".join([option.flag, *_value(option)]), option.text + _default(option), width)
    return "\n".join(lines)


_PLACEHOLDERS = {(int, int): "HEIGHT,WIDTH", (float, float): "LOW,HIGH"}


def _entry(left: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - _INDENT, break_on_hyphens=False) or [""]
    if len(left) + 4 > _INDENT:
        return [f"  {left}", *(" " * _INDENT + line for line in wrapped)]
    return [f"  {left:<{_INDENT - 2}}{wrapped[0]}", *(" " * _INDENT + line for line in wrapped[1:])]


def _value(option: Option) -> list[str]:
    """Return the placeholder of an option's value: its choices, or the type."""
    hint = option.hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(inner for inner in typing.get_args(hint) if inner is not type(None))
        if hint is bool:
            return ["{true,false}"]
    if typing.get_origin(hint) is typing.Literal:
        return ["{" + ",".join(map(str, typing.get_args(hint))) + "}"]
    origin = typing.get_origin(hint) or hint
    if origin is dict:
        return ["KEY=VALUE"]
    if origin in (list, tuple):
        return ["A,B,..." if origin is list else _PLACEHOLDERS.get(typing.get_args(hint), "R,G,B")]
    return {bool: [], int: ["N"], float: ["X"]}.get(origin, ["TEXT"])


def _default(option: Option) -> str:
    """Return the default in parentheses, to be appended to the text of an option."""
    default = option.default
    if default is inspect.Parameter.empty or default is None or default in ("", [], {}):
        return ""
    if default is True:
        return f" (default: yes; --no-{option.flag[2:]} disables it)"
    if default is False:
        return ""
    if isinstance(default, list | tuple):
        default = ",".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in default)
    return f" (default: {default})"
