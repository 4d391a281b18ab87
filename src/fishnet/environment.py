"""Hardware and software of a run, and its main process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from fishnet.files import Json, write_json
from fishnet.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow", "safetensors")


def describe_environment() -> Json:
    """Return versions, commit, command and hardware as plain values."""
    versions = {"fishnet-vision": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions,
        "commit": source_commit(),
        "hardware": describe_hardware(),
    }


def describe_hardware() -> Json:
    """Return processor, cores, threads and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def source_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, or None if it is installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_environment(path: Path, data: Json, resumed: bool) -> None:
    """Write the environment; a resumed run appends its own, so that all sessions of a run are recorded."""
    before: list[Json] = []
    if resumed and path.exists():
        old = json.loads(path.read_text("utf-8"))
        before = [*old.pop("earlier", []), old]
    content = {**describe_environment(), "data": data, "earlier": before}
    write_json(path, content)


def is_main_process() -> bool:
    """Whether this is the main process (rank 0), the only one that writes files and prints."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


SILENT = "FISHNET_NO_SUGGESTIONS"
"""Environment variable of processes that another command runs, which do not suggest the next command."""


def announce(text: str) -> None:
    """Print a line in the main process only."""
    if is_main_process():
        print(text, flush=True)
