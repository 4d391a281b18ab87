"""The run folder: names of the files that training writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fishnet.errors import FishnetError, did_you_mean


def absent(source: Path) -> str:
    """Return the message about a run, file or exported folder that does not exist."""
    beside = [path.name for path in source.parent.iterdir()] if source.parent.is_dir() else []
    hint = did_you_mean(source.name, beside)
    return f"{source} does not exist; give a run folder, a model file, an exported folder or weights.{hint}"


def describing_file(weights: Path) -> Path:
    """Return the model file with the card of weights: for a run folder or a checkpoint in it, that of the run."""
    if weights.is_dir():
        return RunFolder(weights).model_file
    run = run_of(weights)
    return weights if run == weights else RunFolder(run).model_file


def run_of(path: Path) -> Path:
    """Return the run folder of a checkpoint in it; other paths are returned unchanged."""
    is_checkpoint = path.suffix == ".ckpt" and RunFolder(path.parent.parent).checkpoints == path.parent
    return path.parent.parent if is_checkpoint else path


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder; they need not exist."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config_yaml(self) -> Path:
        """All settings; enough to repeat the run."""
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
        """Timings in the same form."""
        return self.path / "timing.csv"

    @property
    def bad_images_txt(self) -> Path:
        """Images that could not be read and were skipped."""
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

    def epoch_file(self, epoch: int) -> Path:
        """Weights after an epoch, counted from 1, if the settings keep them."""
        return self.checkpoints / f"epoch_{epoch:03d}.safetensors"

    @property
    def loggers_json(self) -> Path:
        """Identifiers of the run in other tools."""
        return self.path / "loggers.json"

    @property
    def model_file(self) -> Path:
        """Weights of the best epoch with their card."""
        return self.path / "model.safetensors"

    def evaluation_json(self, split: str = "val") -> Path:
        """Metrics of the best epoch on a split, per class too."""
        return self.path / f"evaluation_{split}.json"

    @property
    def train_batch_png(self) -> Path:
        """First training batch as the network sees it."""
        return self.path / "train_batch.png"

    @property
    def predictions_png(self) -> Path:
        """Predictions of the best epoch for images of the validation split."""
        return self.path / "predictions.png"

    @property
    def insides_png(self) -> Path:
        """Feature maps of the trunk's stages for an image of the validation split."""
        return self.path / "insides.png"

    @property
    def files(self) -> list[Path]:
        """All files that training writes."""
        return [
            self.config_yaml, self.environment_json, self.metrics_csv, self.timing_csv, self.bad_images_txt,
            self.model_file, self.report_html, self.train_batch_png, self.predictions_png, self.insides_png,
            self.evaluation_json(),
            self.last, self.best, self.loggers_json, *sorted(self.checkpoints.glob("epoch_*.safetensors")),
        ]  # fmt: skip

    @property
    def has_begun(self) -> bool:
        """Whether training has written metrics, a checkpoint or a model file."""
        return any(path.exists() for path in (self.metrics_csv, self.last, self.best, self.model_file))

    @property
    def report_html(self) -> Path:
        """Report with curves, tables and pictures."""
        return self.path / "report.html"

    def find_model(self) -> Path:
        """Return the model file.

        Raises:
            FishnetError: There is none.
        """
        if self.model_file.is_file():
            return self.model_file
        for checkpoint in (self.best, self.last):
            if checkpoint.is_file():
                raise FishnetError(
                    f"{self.path} has no {self.model_file.name}: no epoch has finished yet. Continue with --resume, "
                    f"or give {checkpoint} with --task and --model"
                )
        raise FishnetError(f"{self.path} is not a run folder: it has neither {self.model_file.name} nor checkpoints/")
