"""`fishnet data split`: make a stratified validation split."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fishnet.commands.hints import suggest
from fishnet.commands.layouts import task_of
from fishnet.errors import UsageError, refuse_options
from fishnet.tasks import loaded_tasks
from fishnet.tasks.base import DataReport


def data_split(directory: str | Path, task: str | None = None, **options: Any) -> DataReport:
    """Make a stratified validation split of a data set; safe to interrupt and repeat.

    Images move from DIR/train/<class>/ to DIR/val/<class>/, and DIR/<class>/ is divided into train and val. In a COCO
    folder, only the annotation file is divided.

    Args:
        directory: Folder of the data set.
        task: Task that the data is for; by default it is recognized by the layout.
        options: Options of the task, such as `val`, the fraction of the images that becomes val.
    """
    root = Path(directory)
    if task is None:
        _refuse_other_layouts(root)
    kind = task_of(root, task, lambda kind: kind.can_split, lambda kind: kind.layouts)
    if kind.split_data is None:
        raise UsageError(f"{kind.name} has no split for its data")
    known = set(inspect.signature(kind.split_data).parameters) - {"root", "progress"}
    refuse_options(options, known, f"the split of {kind.name} data")
    report = kind.split_data(root, **options)
    print(report.describe())
    if options.get("undo"):
        return report
    suggest("train", kind.name, "--data", directory, "--out", f"runs/{root.resolve().name}", "--model", "fishnet_tiny")
    return report


def _refuse_other_layouts(root: Path) -> None:
    """Raise UsageError if a folder has a layout that must be converted first, with the command."""
    for kind in loaded_tasks():
        if kind.explain_layout is not None and (text := kind.explain_layout(root)):
            raise UsageError(text)
