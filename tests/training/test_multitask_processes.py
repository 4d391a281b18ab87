"""Multitask runs that are killed, and multitask training on two processes, with images that lack levels."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.processes import (
    WITHOUT_ONEDNN,
    assert_equal_losses,
    assert_equal_runs,
    run,
    run_here,
    signal_at_step,
    start,
    values,
)
from tests.tasks.multitask.makers import partial_scenes

TRAIN = ("irp", "i", "r", "p", "iR", "rp", "i", "p")
VAL = ("irp", "i", "rp", "p", "irp", "R", "i")
STEPS = 2 * 4
HEADS = ["--heads.preset", "nano", "--heads.proposals", "40", "--heads.samples", "16"]
SETTINGS = [
    *("--model", "fishnet_nano", "--size", "64", "--epochs", "2", "--batch-size", "2", "--workers", "2"),
    *("--seed", "3", "--ema", "0.9", "--log-every", "1", "--checkpoint-minutes", "0.001", "--device", "cpu"),
    *("--norm", "group", "--augment.scale-jitter", "0.7,1.4", "--weighting", "uncertainty", "--quota", "0"),
    *("--model-option", "drop_path_rate=0.1", "--heads.score", "0.01", *HEADS),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return partial_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": TRAIN, "val": VAL})


def train(data: Path, out: Path, *more: str) -> list[str | Path]:
    return ["train", "multitask", "--data", data, "--out", out, *SETTINGS, *more]


PULLS = ("grad_norm_image", "grad_norm_region", "grad_norm_pixel")


def levels_by_step(out: Path) -> list[set[str]]:
    """Return the levels that had a loss in each step."""
    logged: dict[int, set[str]] = {}
    for step, name in values(out, "train"):
        level = name.partition("_")[0]
        if level in ("image", "region", "pixel"):
            logged.setdefault(int(step), set()).add(level)
    return [logged[step] for step in sorted(logged)]


def test_a_killed_run_resumes_bit_identical(data: Path, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    run(*train(data, straight))
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", 6, signal.SIGKILL)
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)
    # steps lacked levels, and the weights of the losses were learned
    assert any(len(levels) < 3 for levels in levels_by_step(out))
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    learned = {name: float(value) for name, value in state.items() if "log_variances" in name and "ema" not in name}
    assert len(learned) == 3
    assert all(value != 0 for value in learned.values())


def test_two_processes_judge_every_image_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    run(*train(data, out, "--devices", "2", "--epochs", "1"))
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS // 2
    options = ("--batch-size", "1", "--device", "cpu")
    run_here("evaluate", out, "--data", data, "--json", tmp_path / "figures.json", *options)
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert found["images"] == 7
    assert {name: one["images"] for name, one in found["heads"].items()} == {
        "image": 4, "region": 4, "pixel": 4, "panoptic": 3,
    }  # fmt: skip
    assert found["metrics"] == pytest.approx({name: v for (_, name), v in values(out, "val").items()}, abs=1e-6)


ALIKE = [
    *("--model", "fishnet_nano", "--size", "64", "--epochs", "10", "--batch-size", "4", "--workers", "1"),
    *("--log-every", "1", "--validate-every", "10", "--device", "cpu", "--lr", "0.00001", "--optim.name", "sgd"),
    *("--augment.scale-jitter", "0.7,1.4", "--pixel.dropout", "0", "--quota", "0", *HEADS),
]


@pytest.mark.parametrize(
    "options",
    [
        ["--norm=frozen", "--pyramid.norm-relu=false", "--pixel.norm-relu=false"],
        pytest.param(["--norm=group", "--weighting=uncertainty", "--detector=fcos"], marks=pytest.mark.slow),
        pytest.param(["--norm=group", "--detector=cascade_mask_rcnn"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_two_processes_have_the_losses_of_one(
    data: Path, nano_weights: Path, tmp_path: Path, options: list[str]
) -> None:
    """Each head's losses are means over what is labeled in all processes, also where one of them has no label."""
    script = tmp_path / "fishnet_without_onednn.py"
    script.write_text(WITHOUT_ONEDNN)
    found = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        weights = ["--weights", nano_weights] if "--norm=frozen" in options else []
        settings = ["--recipe", "scratch_small", "--data", data, "--out", out, *ALIKE, "--devices", devices]
        run("train", "multitask", *settings, *options, *weights, script=script)
        found.append(values(out, "train"))
    assert_equal_losses(*found, steps=20)
    pulls = {key: value for key, value in found[0].items() if key[1] in PULLS}
    assert {name for _, name in pulls} == set(PULLS)
    assert {key: found[1][key] for key in pulls} == pytest.approx(pulls, rel=2e-3)
    assert len(set().union(*levels_by_step(tmp_path / "2"))) == 3
