"""Metrics of a run in Weights & Biases, MLflow and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fishnet.errors import UsageError
from fishnet.metrics import MetricsFile
from tests.training.test_module import fit, photos

__all__ = ["photos"]  # a fixture


def test_weights_and_biases_gets_the_figures_and_a_resumed_run_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fit(photos, tmp_path / "run", max_steps=1, loggers=["wandb"], batch_size=60)
    first = json.loads(run.loggers_json.read_text("utf-8"))["wandb"]
    import wandb

    wandb.finish()
    fit(photos, tmp_path / "run", loggers=["wandb"], resume=True, allow_changes=True, batch_size=60)
    assert wandb.run is not None
    assert wandb.run.id == json.loads(run.loggers_json.read_text("utf-8"))["wandb"] == first
    logged = dict(wandb.run.summary)
    wandb.finish()
    for row in MetricsFile(run.metrics_csv).read():
        if row["split"] == "val" and row["epoch"] == "2":
            assert logged[f"val/{row['name']}"] == pytest.approx(float(row["value"]))
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(first) for folder in folders)


@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")  # of MLflow's store
def test_mlflow_gets_the_figures_and_a_resumed_run_goes_on(photos: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = fit(photos, tmp_path / "run", max_steps=1, loggers=["mlflow"], batch_size=60)
    fit(photos, tmp_path / "run", loggers=["mlflow"], resume=True, allow_changes=True, batch_size=60)
    found = MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
    (one,) = found.search_runs([found.get_experiment_by_name("fishnet").experiment_id])
    assert one.data.params["epochs"] == "2"
    history = found.get_metric_history(one.info.run_id, "train/loss")
    rows = [row for row in MetricsFile(run.metrics_csv).read() if row["split"] == "train" and row["name"] == "loss"]
    assert [(point.step, point.value) for point in history] == [
        (int(row["step"]), pytest.approx(float(row["value"]))) for row in rows
    ]


def test_a_logger_that_is_not_installed_names_its_extra(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fishnet.training.loggers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^--loggers wandb needs the extra: pip install 'fishnet-vision\[wandb\]'$"):
        fit(photos, tmp_path / "run", loggers=["wandb"])
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_figures_of_metrics_csv(photos: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(photos, tmp_path / "run", epochs=1, loggers=["tensorboard"])
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    rows = MetricsFile(run.metrics_csv).read()
    losses = [float(row["value"]) for row in rows if row["split"] == "train" and row["name"] == "loss"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert "val/top1" in events.Tags()["scalars"]
