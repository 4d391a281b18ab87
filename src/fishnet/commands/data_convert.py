"""`fishnet data convert`: convert data sets between layouts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fishnet.commands.data_convert_pets import data_convert_pets
from fishnet.commands.hints import suggest
from fishnet.commands.layouts import task_of
from fishnet.data.oxford_pets import pets_folder
from fishnet.errors import UsageError, refuse_options
from fishnet.signatures import function_options
from fishnet.tasks import loaded_tasks
from fishnet.tasks.base import DataReport, TaskKind


def data_convert(source: str | Path, dest: str | Path, task: str | None = None, **options: Any) -> DataReport:
    """Convert a data set to another layout, such as Pascal VOC or YOLO to COCO.

    The Oxford-IIIT Pet data set is recognized too, see `fishnet data convert oxford-pets --help`.

    Args:
        source: Folder of the data set.
        dest: Folder to write; must be empty or not exist.
        task: Task that the data is for; by default it is recognized by the layout.
        options: Options of the task, such as `to`, the layout to write.
    """
    if pets_folder(Path(source)) is not None:
        refuse_options(
            options,
            function_options(data_convert_pets).keys() - {"source", "dest"},
            "the conversion of Oxford-IIIT Pet",
        )
        return data_convert_pets(source, dest, **options)
    task = task or _only_task_with(options)
    kind = task_of(Path(source), task, lambda kind: kind.can_convert, lambda kind: kind.convert_layouts)
    if kind.convert_data is None:
        raise UsageError(f"{kind.name} has no other layouts to convert")
    refuse_options(options, _options_of(kind), f"the conversion of {kind.name} data")
    report = kind.convert_data(Path(source), Path(dest), **options)
    print(report.describe())
    suggest("data", "check", kind.name, dest)
    return report


def _options_of(kind: TaskKind) -> set[str]:
    """Return the names of the options of a task's conversion."""
    parameters = inspect.signature(kind.convert_data).parameters if kind.convert_data else {}
    return set(parameters) - {"source", "dest", "progress"}


def _only_task_with(options: Mapping[str, object]) -> str | None:
    """Return the task whose conversion takes all given options; None unless there is exactly one."""
    fitting = [kind.name for kind in loaded_tasks() if options.keys() <= _options_of(kind)]
    return fitting[0] if options and len(fitting) == 1 else None
