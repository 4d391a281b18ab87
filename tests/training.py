"""Running the command line in processes of its own, as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fishnet.metrics import MetricsFile

COMMAND = [sys.executable, "-W", "error::ResourceWarning", "-m", "fishnet"]


def start(*arguments: str | Path, threads: int = 1, **options: object) -> subprocess.Popen[str]:
    """Start `fishnet ARGUMENTS` and return the process; its output is one text stream."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, **options
    )


def run(*arguments: str | Path, code: int = 0, **options: object) -> str:
    """Run `fishnet ARGUMENTS`, expect an exit code, return what it printed."""
    process = start(*arguments, **options)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output


def signal_at_step(process: subprocess.Popen[str], metrics: Path, step: int, signum: int = signal.SIGKILL) -> str:
    """Wait until the run has logged an optimizer step, then send a signal; return what was printed."""
    file, limit = MetricsFile(metrics), time.monotonic() + 300
    while process.poll() is None and time.monotonic() < limit:
        if any(int(row["step"]) >= step for row in file.read()):
            break
        time.sleep(0.02)
    assert process.poll() is None, f"the run ended before step {step}:\n{process.communicate()[0]}"
    process.send_signal(signum)
    return process.communicate(timeout=120)[0]
