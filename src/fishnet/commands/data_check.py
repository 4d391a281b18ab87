"""`fishnet data check`: what is wrong with a data set."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Literal

from fishnet.data.checks import CheckReport, check_classification
from fishnet.errors import UsageError
from fishnet.files import atomic_write


def data_check(
    task: Literal["classification"],
    directory: str,
    min_size: int = 32,
    workers: int = 2,
    json: str | None = None,
) -> CheckReport:
    """Look for damaged, odd and duplicate images and for classes that do not fit; exit code 1 where there are errors.

    Args:
        task: What the data is for.
        directory: Folder of the data set, in any layout.
        min_size: Images with a shorter side than this, in pixels, are reported; 8 x the stem stride of the model.
        workers: Threads that decode images.
        json: File for all findings; the printed listing shows the first five of each kind.
    """
    if task != "classification":
        raise UsageError(f"data check knows the task classification, not {task!r}")
    if min_size < 1 or workers < 1:
        raise UsageError("--min-size and --workers must be 1 or more")
    report = check_classification(Path(directory), min_size=min_size, workers=workers)
    print(report.describe())
    if json is not None:
        atomic_write(json, dumps(report.to_dict(), indent=2) + "\n")
    return report
