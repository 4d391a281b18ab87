"""`fishnet data check`: find problems in a data set."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fishnet.commands.hints import suggest
from fishnet.data.checks import CheckReport
from fishnet.errors import UsageError, refuse_options
from fishnet.files import texts, write_json
from fishnet.tasks import get_task


def data_check(
    task: str, directory: str | Path | Sequence[str | Path], json: str | Path | None = None, **options: Any
) -> CheckReport:
    """Find damaged, unusual and duplicate images, and wrong annotations; the exit code is 1 if there are errors.

    Args:
        task: Task that the data is for.
        directory: Folder of the data set, in any layout of the task. For multitask also several folders as LEVEL=DIR,
            such as `image=DIR1 region=DIR2`, which are checked together.
        json: JSON file for all findings; the printed list shows the first five of each kind.
        options: Options of the task, see `fishnet data check TASK --help`.
    """
    check = get_task(task).check_data
    if check is None:
        raise UsageError(f"{task} has no check for its data")
    known = set(inspect.signature(check).parameters) - {"root", "progress"}
    refuse_options(options, known, f"the check of {task} data")
    if options.get("workers", 1) < 1:
        raise UsageError("--workers must be at least 1")
    folders = texts(directory)
    if len(folders) > 1 and not all("=" in folder for folder in folders):
        raise UsageError(f"data check takes one folder, or several as LEVEL=DIR for multitask, not {' '.join(folders)}")
    report = check(Path(",".join(folders)), **options)
    print(report.describe())
    if json is not None:
        write_json(json, report.to_dict())
    if not report.exit_code:
        suggest(
            "train",
            task,
            "--data",
            *folders,
            "--out",
            f"runs/{Path(folders[0].partition('=')[2] or folders[0]).resolve().name}",
            "--model",
            "fishnet_tiny",
        )
    return report
