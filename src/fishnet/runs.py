"""The run folder: what training leaves behind and everything else starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fishnet.errors import FishnetError


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder; nothing is created by naming them."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config_yaml(self) -> Path:
        """Resolved settings, enough to repeat the run."""
        return self.path / "config.yaml"

    @property
    def environment_json(self) -> Path:
        """Versions, commit, command, hardware and fingerprint of the data."""
        return self.path / "environment.json"

    @property
    def metrics_csv(self) -> Path:
        """Metrics in long form: step, epoch, split, name, value."""
        return self.path / "metrics.csv"

    @property
    def timing_csv(self) -> Path:
        """Timings in the same form; they differ from run to run."""
        return self.path / "timing.csv"

    @property
    def bad_images_txt(self) -> Path:
        """Images that could not be read and were left out."""
        return self.path / "bad_images.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    @property
    def model_file(self) -> Path:
        """Weights of the best epoch with their card."""
        return self.path / "model.safetensors"

    @property
    def report_html(self) -> Path:
        """Report that opens offline."""
        return self.path / "report.html"

    def find_model(self) -> Path:
        """Return the model file.

        Raises:
            FishnetError: where there is none, with the reason.
        """
        if self.model_file.is_file():
            return self.model_file
        for checkpoint in (self.best, self.last):
            if checkpoint.is_file():
                raise FishnetError(
                    f"{self.path} holds no {self.model_file.name}: the run has not finished an epoch yet. Train on "
                    f"with --resume, or name {checkpoint} itself with --task and --model"
                )
        raise FishnetError(f"{self.path} is no run folder: it holds neither {self.model_file.name} nor checkpoints/")
