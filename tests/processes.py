"""Running the command line in processes of its own, as a user does."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fishnet.cli import main
from fishnet.metrics import MetricsFile

WITHOUT_ONEDNN = """
import sys

import torch

torch.backends.mkldnn.set_flags(False)

from fishnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""
"""Script that runs the command line with PyTorch's own convolutions, which compute image by image."""
BLOCKED = ("torch", "torchvision", "fishnet", "timm", "tests")
"""What the runner of an export must not import."""
COMMAND = [sys.executable, "-W", "error::ResourceWarning", "-m", "fishnet"]


def start(
    *arguments: str | Path,
    threads: int = 1,
    env: Mapping[str, str] | None = None,
    script: Path | None = None,
    **options: object,
) -> subprocess.Popen[str]:
    """Start `fishnet ARGUMENTS`, or a script in its place, and return the process; its output is one text stream."""
    environment = {**(env or os.environ), "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [*([sys.executable, str(script)] if script else COMMAND), *map(str, arguments)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, **options
    )


def run(*arguments: str | Path, code: int = 0, **options: object) -> str:
    """Run `fishnet ARGUMENTS`, expect an exit code, return what it printed."""
    process = start(*arguments, **options)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output


def run_here(*arguments: str | Path, code: int = 0) -> str:
    """Run `fishnet ARGUMENTS` in this process, which saves the start of another, and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        found = main([str(argument) for argument in arguments])
    assert found == code, f"exit code {found}, expected {code}:\n{said.getvalue()}"
    return said.getvalue()


def run_alone(folder: Path, *arguments: str, away: Path) -> subprocess.CompletedProcess[str]:
    """Run the runner of an export where importing PyTorch or this library fails."""
    for name in BLOCKED:
        (away / name).mkdir(parents=True, exist_ok=True)
        (away / name / "__init__.py").write_text(f"raise ImportError('{name} is not installed')")
    command = [sys.executable, str(folder / "runner.py"), *arguments]
    return subprocess.run(command, env={"PYTHONPATH": str(away), "PATH": "/usr/bin"}, capture_output=True, text=True)


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


def assert_equal_runs(one: Path, other: Path, steps: int) -> None:
    """Compare two run folders bit for bit: checkpoints, weights, and a metrics file without gaps or duplicates."""
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        assert first["global_step"] == second["global_step"]
        assert first["state_dict"].keys() == second["state_dict"].keys()
        for key, value in first["state_dict"].items():
            assert torch.equal(value, second["state_dict"][key]), f"{name}: {key} differs"
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    rows, other_rows = MetricsFile(one / "metrics.csv").read(), MetricsFile(other / "metrics.csv").read()
    assert rows == other_rows
    places = [(row["step"], row["split"], row["name"]) for row in rows]
    assert len(places) == len(set(places))
    logged = [int(row["step"]) for row in rows if row["split"] == "train" and row["name"] == "loss"]
    assert logged == list(range(1, steps + 1))


def values(out: Path, split: str) -> dict[tuple[str, str], float]:
    """Return the metrics of a run by step and name."""
    rows = MetricsFile(out / "metrics.csv").read()
    return {(row["step"], row["name"]): float(row["value"]) for row in rows if row["split"] == split}


def assert_equal_losses(one: Mapping[tuple[str, str], float], two: Mapping[tuple[str, str], float], steps: int) -> None:
    """Compare the training losses of two runs, by `values`, to 1e-4 relative."""
    assert sum(name == "loss" for _, name in one) == steps
    assert one.keys() == two.keys()
    for (step, name), value in one.items():
        if "loss" in name:
            assert two[step, name] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
