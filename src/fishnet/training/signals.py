"""Signals that stop a run at an optimizer step."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable
from types import FrameType

from fishnet.errors import Interrupted
from fishnet.runs import RunFolder

Handler = Callable[[int, FrameType | None], object] | int | None
"""Type of a signal handler."""


def resume_command(run: RunFolder) -> str:
    """Return the command that continues a run."""
    return shlex.join(["fishnet", "train", "--resume", str(run.path)])


class SignalWatch:
    """Records SIGINT and SIGTERM, so that the run can stop at the next optimizer step; a second one stops
    immediately.

    Args:
        run: Run folder, for the message.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.signum = run, 0
        self._before: dict[int, Handler] = {}

    def install(self) -> None:
        """Install the handlers; does nothing outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise Interrupted(signum, resume_command(self.run))
        self.signum = signum
        print(
            f"\n{signal.Signals(signum).name}: saving at the next step; send the signal again to stop immediately",
            flush=True,
        )
