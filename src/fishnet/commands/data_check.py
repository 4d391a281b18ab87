"""`fishnet data check`: find the problems of a data set."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fishnet.commands.hints import suggest
from fishnet.data.checks import CheckReport
from fishnet.errors import UsageError, refuse_options
from fishnet.files import write_json
from fishnet.tasks import get_task


def data_check(task: str, directory: str, json: str | None = None, **options: Any) -> CheckReport:
    """Find damaged, odd and duplicate images and targets that do not fit; the exit code is 1 if there are errors.

    Args:
        task: Task that the data is for.
        directory: Folder of the data set, in any layout of the task.
        json: File for all findings; the printed list shows the first five of each kind.
        options: Options of the task, see `fishnet data check TASK --help`.
    """
    check = get_task(task).check_data
    if check is None:
        raise UsageError(f"{task} has no check for its data")
    known = set(inspect.signature(check).parameters) - {"root", "progress"}
    refuse_options(options, known, f"the check of {task} data")
    if options.get("workers", 1) < 1:
        raise UsageError("--workers must be at least 1")
    report = check(Path(directory), **options)
    print(report.describe())
    if json is not None:
        write_json(json, report.to_dict())
    if not report.exit_code:
        suggest(
            "train",
            task,
            "--data",
            directory,
            "--out",
            f"runs/{Path(directory).resolve().name}",
            "--model",
            "fishnet_tiny",
        )
    return report
