"""Resumed runs whose batches, data or deciding metric changed: where that is allowed, and what follows from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fishnet.config import OptimConfig
from fishnet.errors import UsageError
from fishnet.metrics import MetricsFile
from fishnet.runs import RunFolder
from fishnet.tasks.classification.evaluator import ClassificationEvaluator, Evaluation
from fishnet.tasks.classification.training import ClassificationTraining
from fishnet.training.optimizer import lr_share
from tests.processes import assert_equal_runs
from tests.training.test_module import fit, photos

__all__ = ["photos"]
RATE = 0.1
SCHEDULE: dict[str, Any] = {"schedule": "cosine", "warmup_epochs": 1.0}
CHANGED: dict[str, Any] = {"lr": RATE, "optim": SCHEDULE, "resume": True, "allow_changes": True}
"""Settings of a resumed run; the training split has 60 images."""


def rates(run: RunFolder) -> list[float]:
    """Return the learning rates of all steps, which are logged in order and once."""
    rows = [row for row in MetricsFile(run.metrics_csv).read() if row["name"] == "lr"]
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    return [float(row["value"]) for row in rows]


def expected(steps_per_epoch: int, epochs: int, of_epochs: range) -> list[float]:
    """Return the learning rates of a run that has this number of steps in every epoch, for some of its epochs."""
    steps = range(of_epochs.start * steps_per_epoch, of_epochs.stop * steps_per_epoch)
    optim = OptimConfig(**SCHEDULE)
    return [RATE * lr_share(optim, step, steps_per_epoch, epochs) for step in steps]


def watch_indices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the index of every image that is trained on."""
    seen: list[int] = []
    losses = ClassificationTraining.losses

    def watched(self: ClassificationTraining, model: nn.Module, batch: dict[str, Any], epoch: int) -> Any:
        seen.extend(batch["index"].tolist())
        return losses(self, model, batch, epoch)

    monkeypatch.setattr(ClassificationTraining, "losses", watched)
    return seen


def test_between_epochs_the_schedule_goes_on_at_the_epoch_reached(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = fit(photos, out, lr=RATE, optim=SCHEDULE, epochs=2, batch_size=10)
    assert rates(run) == pytest.approx(expected(6, 2, range(2)))
    capsys.readouterr()
    fit(photos, out, **CHANGED, epochs=4, batch_size=20)
    assert "3 optimizer steps per epoch from epoch 3 on, 6 before" in capsys.readouterr().out
    assert rates(run)[12:] == pytest.approx(expected(3, 4, range(2, 4)))
    fit(photos, out, **CHANGED, epochs=6, batch_size=30)
    assert rates(run)[18:] == pytest.approx(expected(2, 6, range(4, 6)))
    assert {int(row["epoch"]) for row in MetricsFile(run.metrics_csv).read()} == set(range(1, 7))


def test_a_run_with_changed_batches_resumes_bit_identical_too(photos: Path, tmp_path: Path) -> None:
    first = fit(photos, tmp_path / "straight", lr=RATE, optim=SCHEDULE, epochs=1, batch_size=30)
    shutil.copytree(first.path, tmp_path / "stopped")
    settings = {**CHANGED, "epochs": 3, "batch_size": 20}
    straight = fit(photos, tmp_path / "straight", **settings)
    fit(photos, tmp_path / "stopped", **settings, max_steps=4)
    stopped = fit(photos, tmp_path / "stopped", **settings, max_steps=None)
    assert rates(straight) == rates(stopped)
    assert_equal_runs(straight.path, stopped.path, steps=2 + 2 * 3)


def test_a_limit_of_steps_does_not_repeat_the_end_of_an_epoch(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = fit(photos, tmp_path / "straight", epochs=3, max_steps=8)
    for limit in (3, 6, 7, 7, 8):
        run = fit(photos, tmp_path / "run", epochs=3, max_steps=limit, resume=limit > 3, allow_changes=True)
    assert (
        "all 7 steps of --max-steps are done; continue with --max-steps None --allow-changes" in capsys.readouterr().out
    )
    assert_equal_runs(straight.path, run.path, steps=8)
    epochs = {int(row["step"]): int(row["epoch"]) for row in MetricsFile(run.metrics_csv).read()}
    assert list(epochs.values()) == [1, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
def test_accumulation_may_change_inside_an_epoch(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_indices(monkeypatch)
    run = fit(photos, tmp_path / "run", lr=RATE, optim=SCHEDULE, epochs=1, batch_size=12, max_steps=2)
    fit(photos, tmp_path / "run", **CHANGED, epochs=1, batch_size=12, accumulate=3, max_steps=3)
    fit(photos, tmp_path / "run", **CHANGED, epochs=1, batch_size=12, accumulate=2, max_steps=None)
    assert sorted(seen) == list(range(60))
    assert rates(run) == pytest.approx(expected(5, 1, range(1)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"batch_size": 20},
            r"^--resume: .*run stopped inside epoch 2 \(2 of its 6 steps are done\), where batch_size 10 -> 20 would "
            r"use images twice or not at all; resume with batch_size 10, up to the end of the epoch with --max-steps "
            r"12, and change it then$",
        ),
        ({"seed": 8, "batch_size": 20, "accumulate": 2}, "where batch_size 10 -> 20, seed 0 -> 8 would"),
    ],
)
def test_inside_an_epoch_other_steps_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    run = fit(photos, tmp_path / "run", batch_size=10, max_steps=8)
    before = run.config_yaml.read_bytes()
    with pytest.raises(UsageError, match=says):
        fit(photos, tmp_path / "run", resume=True, allow_changes=True, **changes)
    assert run.config_yaml.read_bytes() == before
    fit(photos, tmp_path / "run", resume=True, allow_changes=True, batch_size=10, max_steps=12)
    fit(photos, tmp_path / "run", resume=True, allow_changes=True, max_steps=None, epochs=3, batch_size=20)
    assert len(rates(run)) == 12 + 3


def test_changed_data_is_refused_inside_an_epoch_and_needs_consent_between_epochs(photos: Path, tmp_path: Path) -> None:
    between = fit(photos, tmp_path / "between", lr=RATE, optim=SCHEDULE, epochs=1, batch_size=10)
    inside = fit(photos, tmp_path / "inside", batch_size=10, max_steps=2)
    for path in sorted((photos / "train" / "cat").iterdir())[:10]:
        path.unlink()
    changed = r"--resume with changed data \(train: 60 -> 50 images\); add --allow-changes if that is intended"
    with pytest.raises(UsageError, match=changed):
        fit(photos, inside.path, batch_size=10, max_steps=2, resume=True)
    with pytest.raises(UsageError, match=r"where 60 -> 50 training images would .* with 60 training images"):
        fit(photos, inside.path, batch_size=10, resume=True, allow_changes=True)
    fit(photos, between.path, **CHANGED, epochs=3, batch_size=10)
    assert rates(between)[6:] == pytest.approx(expected(5, 3, range(1, 3)))


def test_data_with_other_files_needs_consent(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", epochs=1)
    first = min((photos / "val" / "cat").iterdir())
    first.rename(first.with_name("renamed" + first.suffix))
    changed = r"--resume with changed data \(val: other files or labels\); add --allow-changes"
    with pytest.raises(UsageError, match=changed):
        fit(photos, run.path, epochs=1, resume=True)
    fit(photos, run.path, epochs=1, resume=True, allow_changes=True)
    fit(photos, run.path, epochs=1, resume=True)  # the data of the last start is what counts


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Top-1 and loss of the coming validations, which take the place of what is computed."""
    coming: list[tuple[float, float]] = []
    compute = ClassificationEvaluator.compute

    def replaced(self: ClassificationEvaluator) -> Evaluation:
        found = compute(self)
        if coming:
            found.metrics["top1"], found.metrics["loss"] = coming.pop(0)
        return found

    monkeypatch.setattr(ClassificationEvaluator, "compute", replaced)
    return coming


def kept(run: RunFolder) -> int:
    """Return the epoch whose weights are in model.safetensors."""
    epoch = json.loads(run.evaluation_json().read_text("utf-8"))["epoch"]
    assert torch.load(run.best, weights_only=True)["global_step"] == epoch  # runs of one step per epoch
    return int(epoch)


def test_another_deciding_metric_starts_anew_where_its_best_epoch_is_not_kept(
    photos: Path, tmp_path: Path, scripted: list[tuple[float, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted += [(0.9, 1.0), (0.3, 0.5), (0.3, 0.8), (0.3, 0.7)]
    run = fit(photos, tmp_path / "run", epochs=2, batch_size=60, patience=2)
    assert kept(run) == 1
    capsys.readouterr()
    settings: dict[str, Any] = {"resume": True, "allow_changes": True, "best": "loss", "batch_size": 60, "patience": 2}
    fit(photos, tmp_path / "run", epochs=3, **settings)
    said = capsys.readouterr().out
    assert (
        "best: loss decides from here on, not top-1; the weights of epoch 1 are kept, those of its best epoch so far "
        "(2) are not, so the next validation counts as the best\n"
    ) in said
    assert "best 0.8 (epoch 3)" in said
    fit(photos, tmp_path / "run", epochs=4, **settings)
    said = capsys.readouterr().out
    assert "decides from here on" not in said
    assert "best 0.7 (epoch 4)" in said
    assert kept(run) == 4


def test_another_deciding_metric_goes_on_from_the_kept_epoch_if_that_is_its_best_too(
    photos: Path, tmp_path: Path, scripted: list[tuple[float, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted += [(0.2, 0.9), (0.9, 0.5), (0.3, 0.8), (0.8, 0.6), (0.95, 0.7)]
    run = fit(photos, tmp_path / "run", epochs=3, batch_size=60)
    assert kept(run) == 2
    capsys.readouterr()
    settings: dict[str, Any] = {"resume": True, "allow_changes": True, "batch_size": 60}
    fit(photos, tmp_path / "run", epochs=4, best="loss", **settings)
    said = capsys.readouterr().out
    assert "best: loss decides from here on, not top-1; best so far 0.5 (epoch 2)\n" in said
    assert "best 0.5 (epoch 2)" in said.split("epoch 4/4")[1]
    assert kept(run) == 2
    fit(photos, tmp_path / "run", epochs=5, best=None, **settings)
    said = capsys.readouterr().out
    assert "best: top-1 decides from here on, not loss; best so far 90.00 % (epoch 2)\n" in said
    assert "best 95.00 % (epoch 5)" in said
    assert kept(run) == 5
