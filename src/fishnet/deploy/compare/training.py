"""Training of the runs of a comparison."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

from fishnet.deploy.compare.plan import Comparison, Run
from fishnet.environment import SILENT, available_cores
from fishnet.errors import Interrupted

_LONGEST_REASON = 300


class Trainer:
    """Trains runs one after the other or in parallel, each by `fishnet train` in a separate process.

    Args:
        comparison: Runs and their settings.
        jobs: Number of runs in parallel; they share the CPU cores.
        done: Called with each run after its training, and the reason if it failed.
    """

    def __init__(self, comparison: Comparison, jobs: int, done: Callable[[Run, str | None], object]) -> None:
        self.comparison, self.jobs, self.done = comparison, jobs, done
        self.signum = 0
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def train(self, runs: Sequence[Run]) -> None:
        """Train unfinished runs.

        Raises:
            Interrupted: A signal was received; the runs have saved their states.
        """
        with self._forwarding(), ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._train, runs, range(1, len(runs) + 1), [len(runs)] * len(runs)))
        if self.signum:
            raise Interrupted(self.signum, shlex.join(["fishnet", *sys.argv[1:]]))

    def _train(self, run: Run, number: int, of: int) -> None:
        if self.signum:
            return
        print(f"fishnet compare: run {number} of {of}: {run.name}", flush=True)
        command = [sys.executable, "-m", "fishnet", *self.comparison.command(run)]
        environment = {**os.environ, SILENT: "1"}
        if self.jobs > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.jobs))
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
        with self._lock:
            self._running.add(process)
            if self.signum:  # received while it started
                process.send_signal(self.signum)
        said = _pass_on(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
            if not self.signum:
                self.done(run, None if code == 0 else _reason(code, said))

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Forward signals to the runs, which save their states; a second signal stops them immediately."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def forward(signum: int, frame: FrameType | None) -> None:
            self.signum = signum
            for process in list(self._running):
                process.send_signal(signum)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _pass_on(process: subprocess.Popen[bytes]) -> str:
    """Forward the standard error of a process, and return its last part."""
    assert process.stderr is not None
    end = b""
    while part := os.read(process.stderr.fileno(), 65536):
        sys.stderr.write(part.decode(errors="replace"))
        sys.stderr.flush()
        end = (end + part)[-65536:]
    process.stderr.close()
    return end.decode(errors="replace")


def _reason(code: int, said: str) -> str:
    """Return the reason why a run failed, from the last line of its standard error."""
    if code == -signal.SIGKILL:
        return "out of memory: the system ended its process"
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    named = [line.partition("error:")[2].strip() for line in lines if line.startswith("fishnet: error:")]
    return (named or lines or [f"exit code {code}"])[-1][:_LONGEST_REASON]
