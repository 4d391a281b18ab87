"""Runs that stop inside an epoch and go on, as they were or with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fishnet.config import OptimConfig, TrainConfig
from fishnet.errors import UsageError
from fishnet.metrics import MetricsFile
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.runs import RunFolder
from fishnet.training.module import TrainingModule
from fishnet.training.optimizer import build_optimizer
from tests.processes import assert_equal_runs
from tests.training.test_module import fit, photos

__all__ = ["photos"]


@pytest.mark.parametrize(
    ("at", "settings"),
    [
        (1, {"norm": "frozen", "ema": 0.9, "optim": {"name": "lion", "decay_all": False}}),
        (
            4,
            {"freeze": ["stem", "tail"], "ema": 0.9}
            | {"optim": {"name": "lamb", "decay_all": False, "layer_decay": 0.8, "warmup_epochs": 1}},
        ),
    ],
    ids=["frozen norms, lion", "frozen parts, groups of parameters"],
)
def test_a_run_that_stops_inside_an_epoch_resumes_bit_identical(
    photos: Path, nano_weights: Path, tmp_path: Path, at: int, settings: dict[str, Any]
) -> None:
    # the weights to start from may be gone when the run goes on
    weights = tmp_path / "start.pth"
    shutil.copy(nano_weights, weights)
    settings = {**settings, "weights": str(weights)}
    straight = fit(photos, tmp_path / "straight", **settings)
    fit(photos, tmp_path / "resumed", max_steps=at, **settings)
    weights.unlink()
    resumed = fit(
        photos, tmp_path / "resumed", **{**settings, "resume": True, "allow_changes": True, "max_steps": None}
    )
    assert_equal_runs(straight.path, resumed.path, steps=6)


def optimizer_of(run: RunFolder) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return settings and state of the optimizer in the last checkpoint, by name of the parameter."""
    checkpoint = torch.load(run.last, weights_only=True)
    state, names = checkpoint["optimizer_states"][0], checkpoint["optimizer_parameters"]
    places = [(group, place) for group in state["param_groups"] for place in group["params"]]
    assert [place for _, place in places] == list(range(len(names)))
    groups = {name: group for name, (group, _) in zip(names, places, strict=True)}
    return groups, {name: state["state"][place] for place, name in enumerate(names)}


def test_a_resumed_run_follows_changed_settings_of_the_optimizer(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"decay_all": True, "schedule": "constant"}
    after = {
        "decay_all": False, "layer_decay": 0.5, "weight_decay": 0.3, "momentum": 0.5, "schedule": "step",
        "step_at": [1], "step_gamma": 0.25,
    }  # fmt: skip
    settings: dict[str, Any] = {"lr": 0.1, "optim": before}
    fit(photos, tmp_path / "run", max_steps=4, **settings)
    _, kept = optimizer_of(RunFolder(tmp_path / "run"))
    taken: dict[str, torch.Tensor] = {}

    def watch(self: TrainingModule) -> None:
        optimizer = self.trainer.optimizers[0]
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        taken.update({names[p]: state["momentum_buffer"].clone() for p, state in optimizer.state.items()})

    monkeypatch.setattr(TrainingModule, "on_train_start", watch, raising=False)
    changes = {"lr": 0.02, "optim": after, "max_steps": 5}
    run = fit(photos, tmp_path / "run", **{**settings, "resume": True, "allow_changes": True, **changes})
    assert taken.keys() == kept.keys()
    assert all(torch.equal(taken[name], kept[name]["momentum_buffer"]) for name in kept)

    groups, _ = optimizer_of(run)
    plan = ClassifierPlan(num_classes=2)
    model = build_network(Architecture("fishnet_nano", {"image": plan}, {"stem_stride": 2}))
    shapes = dict(model.named_parameters())
    config = TrainConfig(lr=0.02, optim=OptimConfig(**after))  # type: ignore[arg-type]
    made = build_optimizer(model, config)
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert groups.keys() == shapes.keys()
    for name, group in groups.items():
        assert group["weight_decay"] == (0.3 if shapes[name].ndim > 1 else 0.0), name
        assert group["momentum"] == 0.5
        assert group["lr"] == pytest.approx(0.25 * rates[id(shapes[name])]), name
    logged = {row["step"]: float(row["value"]) for row in MetricsFile(run.metrics_csv).read() if row["name"] == "lr"}
    assert [logged[str(step)] for step in (1, 4)] == [0.1, 0.1]
    assert logged["5"] == pytest.approx(0.25 * 0.02)


def test_what_a_checkpoint_has_no_state_for_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", epochs=1, max_steps=1)
    before = run.config_yaml.read_bytes()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"optim": {"name": "adamw"}}, "cannot change optim.name from sgd to adamw"),
        ({"ema": 0.9}, "cannot change ema from None to 0.9"),
        ({"model": "fishnet_tiny"}, "cannot change model from fishnet_nano to fishnet_tiny"),
    ]
    for changes, says in refused:
        with pytest.raises(UsageError, match=says):
            fit(photos, tmp_path / "run", epochs=2, resume=True, allow_changes=True, **changes)
        assert run.config_yaml.read_bytes() == before
