"""Conversion of a model in a separate process, once for all rows that need it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fishnet.deploy.bench.calibration import batches, find_photos
from fishnet.deploy.bench.conversion import Wanted, convert
from fishnet.deploy.bench.networks import build
from fishnet.errors import FishnetError


@dataclass(frozen=True)
class Conversion:
    """Conversion of a model."""

    model: str
    size: int
    wanted: Wanted
    folder: str
    """Folder of the converted models."""
    calibration: str | None
    """Folder of photos for int8."""

    @property
    def file(self) -> Path:
        """File of the converted model."""
        key = hashlib.sha256(f"{self.model} {self.size}".encode()).hexdigest()[:16]
        return Path(self.folder) / key / self.wanted.file_name

    def run(self) -> None:
        """Run the conversion in this process."""
        torch.manual_seed(0)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        photos = find_photos(Path(self.calibration)) if self.wanted.precision == "int8" and self.calibration else []
        example = torch.randn(1, 3, self.size, self.size)
        convert(build(self.model), example, self.wanted, self.file, lambda: batches(photos, self.size))


def converted(job: Conversion) -> Path:
    """Return the file of a converted model; convert the model if the file is missing.

    Raises:
        FishnetError: The model cannot be converted.
    """
    if not job.file.exists():
        command = [sys.executable, "-m", "fishnet.deploy.bench.prepare", json.dumps(asdict(job))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            job.file.unlink(missing_ok=True)
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            named = said[-1].removeprefix(f"{FishnetError.__module__}.{FishnetError.__name__}: ")
            reason = "killed, most likely out of memory" if done.returncode == -9 else named
            raise FishnetError(f"cannot be converted: {reason}")
    return job.file


if __name__ == "__main__":
    _content = json.loads(sys.argv[1])
    Conversion(**{**_content, "wanted": Wanted(*_content["wanted"])}).run()
