"""Recognition of the task that a data folder is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fishnet.errors import UsageError
from fishnet.tasks import get_task, loaded_tasks
from fishnet.tasks.base import TaskKind


def task_of(
    root: Path,
    named: str | None,
    fits: Callable[[TaskKind], Callable[[Path], bool] | None],
    layouts: Callable[[TaskKind], str],
) -> TaskKind:
    """Return the task that a folder is for.

    Args:
        root: Folder of the data set.
        named: Task that the user named, if any.
        fits: Returns the function that recognizes the layouts of a task.
        layouts: Returns a short description of the layouts of a task.

    Raises:
        UsageError: Several tasks recognize the layout, or none of several does.
    """
    if named is not None:
        return get_task(named)
    kinds = [kind for kind in loaded_tasks() if fits(kind) is not None]
    fitting = [kind for kind in kinds if (recognizes := fits(kind)) is not None and recognizes(root)]
    if len(fitting) > 1:
        names = ", ".join(kind.name for kind in fitting)
        raise UsageError(f"the layout of {root} fits several tasks ({names}); choose one with --task")
    if not fitting and len(kinds) > 1:
        known = "; ".join(f"{kind.name}: {layouts(kind)}" for kind in kinds)
        raise UsageError(f"no task recognizes the layout of {root} ({known}); choose one with --task to learn more")
    return fitting[0] if fitting else kinds[0]
