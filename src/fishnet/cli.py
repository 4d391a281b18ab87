"""The command line: parsing only.

The options of a command are the parameters of its function in `fishnet.commands`, and those that the task adds.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fishnet.errors import FishnetError, Interrupted, UsageError, did_you_mean
from fishnet.files import Json
from fishnet.messages import advice_on, plainly

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from fishnet.cli_tasks import Extension
    from fishnet.signatures import Function


@dataclass(frozen=True)
class Command:
    """Where a command lives, and its positional arguments: name -> nargs."""

    module: str
    summary: str
    positional: dict[str, str | None] = field(default_factory=dict)
    extensions: str | None = None
    """Name of the function in `fishnet.cli_tasks` that yields the options of tasks."""
    required: str = ""
    """Options of tasks that a call needs, for the usage line."""

    def load(self) -> Function:
        """Import the function; it has the name of its module."""
        return getattr(importlib.import_module(f"fishnet.commands.{self.module}"), self.module)


COMMANDS = {
    "info": Command("info", "describe models, recipes and detectors", {"model": "?", "name": "?"}),
    "train": Command("train", "train or fine-tune a model", {"task": None}, "train_settings", "--data DIR [--out RUN]"),
    "evaluate": Command("evaluate", "evaluate a run or weights on a data set", {"run": None}, "evaluation_options"),
    "predict": Command(
        "predict", "predict on images, folders, patterns and videos", {"run": None, "inputs": "+"}, "answer_options"
    ),
    "bench": Command("bench", "measure and compare the speed of models", {"models": "+"}),
    "compare": Command(
        "compare",
        "train and compare several models and seeds with one recipe",
        {"task": None},
        "compare_settings",
        "--data DIR",
    ),
    "export": Command("export", "export a run for onnxruntime, OpenVINO or torch.export", {"run": None}),
    "convert": Command("convert", "read any known checkpoint and write another layout", {"source": None, "dest": None}),
    "data check": Command(
        "data_check", "find problems in a data set", {"task": None, "directory": "+"}, "check_options"
    ),
    "data convert oxford-pets": Command(
        "data_convert_pets", "convert the Oxford-IIIT Pet data set for all tasks", {"source": None, "dest": None}
    ),
    "data convert": Command(
        "data_convert",
        "convert a data set to another layout, such as VOC or YOLO to COCO",
        {"source": None, "dest": None},
        "convert_options",
    ),
    "data split": Command("data_split", "make a stratified validation split", {"directory": None}, "split_options"),
    "data make": Command("data_make", "generate a data set for all tasks", {"name": None, "directory": None}),
    "data get": Command("data_get", "download a data set", {"name": None, "directory": None}),
    "demo": Command("demo", "train, evaluate and predict on built-in data"),
}


OTHER_COMMANDS = {
    "resume": " A run is resumed by: fishnet train --resume RUN.",
    "val": " A run is evaluated by: fishnet evaluate RUN.",
    "test": " A run is evaluated by: fishnet evaluate RUN --split test.",
    "fit": " A model is trained by: fishnet train TASK --data DIR.",
    "finetune": " A model is fine-tuned by: fishnet train TASK --data DIR --weights pretrained.",
    "detect": " A run predicts by: fishnet predict RUN photos --out DIR.",
    "infer": " A run predicts by: fishnet predict RUN photos --out DIR.",
    "benchmark": " Models are measured by: fishnet bench MODEL.",
}
"""Commands of other tools, and the equivalent ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 done, 1 failed or found problems, 2 bad usage, 130/143 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with plain_warnings():
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


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print the warnings of this package as one line, without their source line."""
    original = warnings.formatwarning

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category.__module__.partition(".")[0] == __package__:
            return f"fishnet: warning: {message}\n"
        return original(message, category, filename, lineno, line)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = original


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
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "version"):
        from fishnet.version import __version__

        print(__version__)
        return 0
    name, rest = find_command(arguments)
    command = COMMANDS[name]
    if "run" in command.positional:
        check_run(rest)
    if name == "train":
        rest = resume_by_folder(rest)
    function = command.load()
    values = parse(name, command, function, rest)
    if values is None:
        return 0
    result = function(**values)
    return int(getattr(result, "exit_code", 0))


def check_run(arguments: list[str]) -> None:
    """Reject a path to a run that does not exist before PyTorch is imported, which takes seconds."""
    from pathlib import Path

    from fishnet.runs import absent

    run = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else Path()
    if len(run.parts) > 1 and not run.expanduser().exists():
        raise UsageError(absent(run))


def resume_by_folder(arguments: list[str]) -> list[str]:
    """Expand `--resume RUN` into the task of the run and `--out RUN --resume`."""
    arguments = [part for argument in arguments for part in _split_resume(argument)]
    place = arguments.index("--resume") + 1 if "--resume" in arguments else len(arguments)
    if arguments == ["--resume"]:
        raise UsageError("--resume needs the folder of the run: fishnet train --resume RUN")
    if place == len(arguments) or arguments[place].startswith("-") or arguments[place] in ("true", "false"):
        return arguments
    from pathlib import Path

    from fishnet.cli_tasks import class_hints, positional
    from fishnet.commands.train import train
    from fishnet.config import TrainConfig
    from fishnet.runs import RunFolder, run_of
    from fishnet.settings import read_task
    from fishnet.signatures import function_options
    from fishnet.tasks import task_names

    names = task_names()
    folder = str(run_of(Path(arguments[place])))
    config = RunFolder(Path(folder)).config_yaml
    others = [*arguments[: place - 1], *arguments[place + 1 :]]
    hints = class_hints(TrainConfig) | {name: option.hint for name, option in function_options(train).items()}
    has_task = any(argument in names for argument in positional(others, hints))
    if folder in names and not has_task and not config.exists():
        return arguments  # `--resume TASK --out RUN`: a flag before the task
    rest = [*others, "--resume", "--out", folder]
    return rest if has_task else [read_task(config), *rest]


def _split_resume(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    return [name, value] if name == "--resume" and equals and value not in ("true", "false") else [argument]


def usage() -> str:
    """Return the overview of all commands."""
    lines = [f"  {name:<25} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: fishnet COMMAND ... (fishnet COMMAND --help for details)", "", *lines])


def find_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Split the command's name, of one to three words, from its options."""
    for words in (3, 2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    name = " ".join(arguments[:2]) if any(n.startswith(f"{arguments[0]} ") for n in COMMANDS) else arguments[0]
    hint = OTHER_COMMANDS.get(arguments[0]) or did_you_mean(name, COMMANDS)
    raise UsageError(f"unknown command {name!r}.{hint} Known are {', '.join(COMMANDS)}")


def parse(name: str, command: Command, function: Function, arguments: list[str]) -> Json | None:
    """Return the keyword arguments for a command's function, or None after printing the help.

    Raises:
        UsageError: An unknown option, a missing argument or a value of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from fishnet.cli_tasks import normalize
    from fishnet.signatures import function_options

    hints = {key: option.hint for key, option in function_options(function).items()}
    if wants_help := any(argument in ("-h", "--help") for argument in arguments):
        arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
        if "task" in command.positional and not arguments:
            print(tasks_help(name, command))
            return None
    extensions: list[Extension] = []
    if command.extensions is not None:
        extensions = list(getattr(importlib.import_module("fishnet.cli_tasks"), command.extensions)(arguments, hints))
    if wants_help:
        print(command_help(name, command, function, extensions))
        return None
    parser = ArgumentParser(prog=f"fishnet {name}", exit_on_error=False, allow_abbrev=False)
    for argument, nargs in command.positional.items():
        options: Json = {} if nargs is None else {"nargs": nargs}
        parser.add_argument(argument, type=str if nargs else hints[argument], **options)
    parser.add_function_arguments(function, as_group=False, skip={*command.positional, "settings", "options"})
    for extension in extensions:
        hints = {**extension.hints(), **hints}
        extension.add_to(parser)
    try:
        # Defaults are left to the function, so that a resumed run can distinguish explicit options from defaults.
        namespace = parser.parse_args(normalize(arguments, hints), defaults=False)
    except ArgumentError as error:
        raise UsageError(explain(str(error), parser)) from None
    missing = [key for key, nargs in command.positional.items() if nargs != "?" and namespace.get(key) is None]
    if missing:
        raise UsageError(f"fishnet {name}: {', '.join(missing).upper()} is missing; see fishnet {name} --help")
    return {
        key: value for key, value in namespace.as_dict().items() if value is not None or key not in command.positional
    }


def tasks_help(name: str, command: Command) -> str:
    """Return the help of a command whose options depend on the task: the list of tasks."""
    from fishnet.tasks import loaded_tasks

    lines = [f"  {kind.name:<16}{kind.summary}" for kind in loaded_tasks()]
    head = f"usage: fishnet {name} TASK ... (fishnet {name} TASK --help lists its options)"
    return "\n".join([head, "", f"{command.summary[0].upper()}{command.summary[1:]}.", "", "Tasks:", *lines])


def command_help(name: str, command: Command, function: Function, extensions: list[Extension]) -> str:
    """Return the help of a command."""
    from fishnet.cli_help import render
    from fishnet.signatures import Group, function_options

    options = function_options(function)
    task = extensions[0].task if "task" in command.positional and extensions else None
    positional = [options[argument] for argument in command.positional if not (task and argument == "task")]
    own = Group("Options", [option for key, option in options.items() if key not in command.positional])
    forms = {"+": "{} [{} ...]", "?": "[{}]", None: "{}"}
    words = [forms[command.positional[one.name]].replace("{}", one.name.upper()) for one in positional]
    words += [f"{option.flag} {option.name.upper()}" for option in own.options if option.is_required]
    summary = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
    required = [command.required] if command.required else []
    usage = " ".join(["fishnet", name, *([task] if task else []), *words, *required, "[options]"])
    groups = [group for extension in extensions for group in extension.groups()]
    groups.insert(1 if task else 0, own)  # the most common settings of a task first
    return render(usage, summary, groups, positional)


def explain(message: str, parser: ArgumentParser) -> str:
    """Return a parser's message as one line; for an unknown option, suggest the nearest one or the task that has it."""
    line = " ".join(message.split())
    if match := re.search(r"unrecognized arguments: (--?)([\w.]+)", line):
        return f"unknown option {match[1]}{match[2].replace('_', '-')}.{_advice(match[2], parser)}"
    if match := re.search(r"unrecognized arguments: (\w+)=(\S+)", line):
        return f"options are written {_flag(match[1])} {match[2]}, not {match[1]}={match[2]}; see {parser.prog} --help"
    if match := re.search(r"following arguments are required: ([\w, ]+)", line):
        options = {text[2:] for action in parser._actions for text in action.option_strings if text.startswith("--")}
        names = [name.strip() for name in match[1].split(",")]
        shown = [f"--{name.replace('_', '-')}" if name in options else name.upper() for name in names]
        return f"{' and '.join(shown)} {'is' if len(shown) == 1 else 'are'} missing; see {parser.prog} --help"
    return plainly(line, _flag)


def _advice(option: str, parser: ArgumentParser) -> str:
    """Return a suggestion for an unknown option: the nearest one, or the task that has it."""
    from fishnet.schema import owners_of

    if parser.prog == "fishnet train" and (owners := owners_of(option)):
        return f" It is a setting of {' and '.join(owners)}."
    known = [text[2:] for action in parser._actions for text in action.option_strings if text.startswith("--")]
    return advice_on(option, [name for name in known if not name.endswith("+")], _flag)


def _flag(name: str) -> str:
    """Return the option of a setting as typed on the command line."""
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
