"""Experiment loggers besides metrics.csv: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import NamedTuple

from pytorch_lightning.loggers import Logger

from fishnet.config import TrainConfig
from fishnet.errors import UsageError
from fishnet.files import write_json
from fishnet.runs import RunFolder

PROJECT = "fishnet"
"""Default project of Weights & Biases and experiment of MLflow; their environment variables override it."""


def make_loggers(config: TrainConfig, run: RunFolder) -> list[Logger]:
    """Return the loggers that the settings name; a resumed run continues what it logged before.

    Raises:
        UsageError: A package is not installed.
    """
    return [LOGGERS[name].make(config, run) for name in dict.fromkeys(config.loggers)]


def check_loggers(names: Sequence[str]) -> None:
    """Raise UsageError for a logger whose package is not installed."""
    for name in names:
        if find_spec(LOGGERS[name].package) is None:
            raise UsageError(f"--loggers {name} needs the extra: pip install 'fishnet-vision[{name}]'")


def _tensorboard(config: TrainConfig, run: RunFolder) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run.path), name="", version="tensorboard")


def _wandb(config: TrainConfig, run: RunFolder) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    kept = _kept(run, "wandb", lambda: uuid.uuid4().hex[:8])
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandbLogger(
        project=project, name=run.path.name, save_dir=str(run.path), id=kept, resume="allow", config=_settings(config)
    )


def _mlflow(config: TrainConfig, run: RunFolder) -> Logger:
    from pytorch_lightning.loggers import MLFlowLogger

    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run.path / 'mlflow.db').resolve()}"
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    before = json.loads(run.loggers_json.read_text("utf-8")).get("mlflow") if run.loggers_json.exists() else None
    logger = MLFlowLogger(experiment, run_name=run.path.name, tracking_uri=place, run_id=before)
    _kept(run, "mlflow", lambda: str(logger.run_id))
    if before is None:
        logger.log_hyperparams(_settings(config))
    return logger


def _kept(run: RunFolder, name: str, make: Callable[[], str]) -> str:
    """Return the identifier of a run in another tool; it is stored in the run folder for resuming."""
    known: dict[str, str] = json.loads(run.loggers_json.read_text("utf-8")) if run.loggers_json.exists() else {}
    if name not in known:
        known[name] = make()
        write_json(run.loggers_json, known)
    return known[name]


def _settings(config: TrainConfig) -> dict[str, object]:
    return asdict(config)


class Tool(NamedTuple):
    """Experiment tracker that metrics are logged to."""

    package: str
    """Package to import; the extra has the name of the tool."""
    make: Callable[[TrainConfig, RunFolder], Logger]


LOGGERS = {
    "tensorboard": Tool("tensorboard", _tensorboard),
    "wandb": Tool("wandb", _wandb),
    "mlflow": Tool("mlflow", _mlflow),
}
