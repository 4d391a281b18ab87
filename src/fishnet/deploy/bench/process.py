"""Worker processes of the benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO

from fishnet.deploy.bench.worker import Order
from fishnet.errors import FishnetError
from fishnet.files import Json


class RowFailed(FishnetError):
    """A row cannot be measured; the message is the reason."""


class Process:
    """A worker process; see `fishnet.deploy.bench.worker`.

    It runs in its own session, so that Ctrl-C in a terminal only reaches the command, which keeps the results so far.
    """

    def __init__(self, order: Order) -> None:
        threads = str(order.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fishnet.deploy.bench.worker", order.text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Process identifier."""
        return self._process.pid

    def ask(self, **request: str | int) -> Json:
        """Send a request and return the answer.

        Raises:
            RowFailed: The request failed, or the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RowFailed(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise RowFailed(answer["error"])
        return answer

    def close(self) -> None:
        """Terminate the process; further calls have no effect."""
        if self._log.closed:  # another process may have its identifier by now
            return
        with suppress(ProcessLookupError):  # including a running conversion
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _death(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "out of memory: the system ended its process"
        self._log.seek(0)
        said = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"its process ended with code {code}" + (f": {said[-1][:300]}" if said else "")
