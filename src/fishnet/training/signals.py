"""Signals that stop a run at an optimizer step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from fishnet.errors import Interrupted

Handler = Callable[[int, FrameType | None], object] | int | None
"""What Python calls on a signal."""


class SignalWatch:
    """Records SIGINT and SIGTERM, so that the run can stop at the next optimizer step; a second one stops
    immediately."""

    def __init__(self) -> None:
        self.signum = 0
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
            raise Interrupted(signum)
        self.signum = signum
        print(
            f"\n{signal.Signals(signum).name}: saving at the next step; send the signal again to stop immediately",
            flush=True,
        )
