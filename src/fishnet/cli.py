"""The command line: parsing only. A command's options are the signature of its function in `fishnet.commands`."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from fishnet.errors import FishnetError, Interrupted, UsageError, did_you_mean


@dataclass(frozen=True)
class Command:
    """Where a command lives and which of its arguments stand without a dash: name -> nargs."""

    module: str
    summary: str
    positional: dict[str, str | None] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """Import the function; it has the name of its module."""
        return getattr(importlib.import_module(f"fishnet.commands.{self.module}"), self.module)


COMMANDS = {
    "info": Command("info", "the family, or one model: stages, costs, gradient flow, figure", {"model": "?"}),
    "train": Command("train", "train or fine-tune a model", {"task": None}),
    "evaluate": Command("evaluate", "judge a run or weights on a data set", {"run": None}),
    "predict": Command("predict", "predict on images, folders and globs", {"run": None, "inputs": "+"}),
    "convert": Command("convert", "read any known checkpoint and write another layout", {"source": None, "dest": None}),
    "data check": Command("data_check", "find what is wrong with a data set", {"task": None, "directory": None}),
    "data convert": Command("data_convert", "boxes between COCO, VOC and YOLO layouts", {"source": None, "dest": None}),
    "data split": Command("data_split", "make a stratified val split", {"directory": None}),
    "demo": Command("demo", "a real run on embedded data, from training to pictures"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 done, 1 failed or found problems, 2 bad usage, 130/143 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return run(arguments)
    except (FishnetError, Interrupted) as error:
        return report(error, error.exit_code, debug)
    except KeyboardInterrupt as error:
        return report(error, 130, debug, "interrupted")
    except BrokenPipeError:
        return 141
    except OSError as error:
        return report(error, 1, debug, f"{error.filename or 'input/output'}: {error.strerror or error}")
    except Exception as error:
        return report(
            error, 1, debug, f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
        )


def report(error: BaseException, code: int, debug: bool, message: str | None = None) -> int:
    """Print one line for an error, or with --debug its traceback, and return the exit code."""
    if debug:
        traceback.print_exception(error)
    print(
        f"fishnet: {'' if isinstance(error, Interrupted) else 'error: '}{message or error}", file=sys.stderr, flush=True
    )
    return code


def run(arguments: list[str]) -> int:
    """Find the command, parse its options, call it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fishnet.version import __version__

        print(__version__)
        return 0
    name, rest = find_command(arguments)
    command = COMMANDS[name]
    function = command.load()
    values = parse(name, command, function, rest)
    if values is None:
        return 0
    result = function(**values)
    return int(getattr(result, "exit_code", 0))


def usage() -> str:
    """Return the overview of all commands."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: fishnet COMMAND ... (fishnet COMMAND --help tells more)", "", *lines])


def find_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Split the command's name, of one or two words, from its options."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    name = " ".join(arguments[:2]) if any(n.startswith(f"{arguments[0]} ") for n in COMMANDS) else arguments[0]
    raise UsageError(f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Known are {', '.join(COMMANDS)}")


def parse(name: str, command: Command, function: Callable[..., Any], arguments: list[str]) -> dict[str, Any] | None:
    """Return the keywords for a command's function, or nothing after printing the help.

    Raises:
        UsageError: An unknown option, a missing argument or a value of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog=f"fishnet {name}", exit_on_error=False, allow_abbrev=False, formatter_class=dashed_formatter()
    )
    hints = typing.get_type_hints(function)
    for argument, nargs in command.positional.items():
        options: dict[str, Any] = {} if nargs is None else {"nargs": nargs}
        kind = str if nargs else hints[argument]
        parser.add_argument(argument, type=kind, help=argument_help(function, argument), **options)
    kept = parser.add_function_arguments(function, as_group=False, skip={*command.positional, "settings"})
    flags = {option for option in kept if hints.get(option) is bool}
    if name == "train":
        from fishnet.config import TrainConfig

        parser.add_class_arguments(TrainConfig, as_group=False)
        flags |= boolean_settings(TrainConfig)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(parser.format_help())
        return None
    try:
        # Defaults are left to the function; so a resumed run can tell what was asked for from what was not.
        namespace = parser.parse_args(normalise(arguments, flags), defaults=False)
    except ArgumentError as error:
        raise UsageError(explain(str(error), parser)) from None
    missing = [key for key, nargs in command.positional.items() if nargs != "?" and namespace.get(key) is None]
    if missing:
        raise UsageError(f"fishnet {name}: {', '.join(missing).upper()} is missing; see fishnet {name} --help")
    values = {
        key: value for key, value in namespace.as_dict().items() if value is not None or key not in command.positional
    }
    return dict(values)


def boolean_settings(kind: type, prefix: str = "") -> set[str]:
    """Return the names of all yes/no fields of a dataclass and of the dataclasses in it."""
    names: set[str] = set()
    for name, hint in typing.get_type_hints(kind).items():
        if hint is bool:
            names.add(prefix + name)
        elif is_dataclass(hint) and isinstance(hint, type):
            names |= boolean_settings(hint, f"{prefix}{name}.")
    return names


def normalise(arguments: list[str], flags: set[str]) -> list[str]:
    """Turn the spelling of people into that of the parser.

    `--batch-size 8` becomes `--batch_size 8`, a yes/no option alone means yes, `--no-NAME` means no, and
    `--model-option KEY=VALUE` becomes `--model_option.KEY VALUE`.
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
        if option == "model_option" and not equals and rest and "=" in rest[0]:
            key, _, setting = rest.pop(0).partition("=")
            spelled.append(f"--model_option.{key}={setting}")
        elif option in flags and not equals and (not rest or rest[0].lower() not in ("true", "false")):
            spelled.append(f"--{option}=true")
        elif option.startswith("no_") and option[3:] in flags and not equals:
            spelled.append(f"--{option[3:]}=false")
        else:
            spelled.append(f"--{option}{equals}{value}")
    return spelled


def explain(message: str, parser: Any) -> str:
    """Return a parser's complaint as one line, with the nearest option for an unknown one."""
    line = " ".join(message.split())
    line = re.sub(r"<class '(\w+)'>", r"\1", line).replace("typing.", "")
    if match := re.search(r"unrecognized arguments: --([\w.]+)", line):
        known = [
            option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")
        ]
        spelled = match[1].replace("_", "-")
        near = (
            did_you_mean(match[1], known)
            .replace("_", "-")
            .replace("'", "")
            .replace("mean ", "mean --")
            .replace(" or ", " or --")
        )
        return f"unknown option --{spelled}.{near}"
    return re.sub(r"Parser key \"([\w.]+)\":", lambda m: f"--{m[1].replace('_', '-')}:", line)


def argument_help(function: Callable[..., Any], name: str) -> str | None:
    """Return what the docstring of a function says of an argument."""
    match = re.search(rf"^\s+{name}: (.+?)(?=^\s+\w+: |^\s*$|\Z)", function.__doc__ or "", re.M | re.S)
    return " ".join(match[1].split()) if match else None


def dashed_formatter() -> Any:
    """Return a help formatter that shows options with dashes, as people type them."""
    from jsonargparse import DefaultHelpFormatter

    class DashedHelpFormatter(DefaultHelpFormatter):
        def format_help(self) -> str:
            return re.sub(r"--[a-z_.]+", lambda match: match[0].replace("_", "-"), super().format_help())

    return DashedHelpFormatter


if __name__ == "__main__":
    sys.exit(main())
