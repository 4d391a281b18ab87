"""Detection runs that are killed, and detection on two processes."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
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
from tests.tasks.detection.test_run import small

STEPS = 2 * 4
SETTINGS = [
    *("--model", "fishnet_nano", "--size", "64", "--longest", "96", "--epochs", "2", "--batch-size", "2"),
    *("--workers", "2", "--seed", "3", "--ema", "0.9", "--log-every", "1", "--checkpoint-minutes", "0.001"),
    *("--heads.preset", "nano", "--heads.proposals", "40", "--heads.samples", "16", "--norm", "group"),
    *("--heads.score", "0.01", "--device", "cpu"),
    *("--augment.mosaic", "0.3", "--augment.copy-paste", "0.5", "--augment.iou-crop", "true"),
    *(
        "--augment.short-edges",
        "[64,80]",
        "--augment.scale-jitter",
        "null",
        "--augment.photometric",
        "true",
        "--model-option",
        "drop_path_rate=0.1",
    ),
]


@pytest.fixture(scope="module")
def data(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(mini, tmp_path_factory.mktemp("pennfudan"), count=8)


def train(data: Path, out: Path, *more: str) -> list[str | Path]:
    return ["train", "detection", "--data", data, "--out", out, *SETTINGS, *more]


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is never killed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(*train(data, out))
    return out


def test_a_killed_run_resumes_bit_identical(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", 6, signal.SIGKILL)
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(2, 7))
def test_killed_at_every_step(data: Path, straight: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", step, signal.SIGKILL)
    print(f"trial {step}: killed at step {step} of {STEPS}")
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


@pytest.mark.slow  # the runs of multitask, with a region head, take the same path in every suite
def test_two_processes_judge_every_image_once(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    run(*train(data, out, "--devices", "2"))
    trained = values(out, "train")
    assert sum(name == "loss" for _, name in trained) == STEPS
    assert all(math.isfinite(value) for value in trained.values())
    assert trained["1", "lr"] == values(straight, "train")["1", "lr"]
    # what both found together is what one process finds with the weights of the last epoch
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS
    run_here(
        "evaluate", out, "--data", data, "--json", tmp_path / "figures.json", "--batch-size", "1", "--device", "cpu"
    )
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert found["images"] == 8
    logged = values(out, "val")
    best = max((value, step) for (step, name), value in logged.items() if name == "mask_ap")[1]
    expected = {name: value for (step, name), value in logged.items() if step == best}
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)


ALIKE = [
    *("--model", "fishnet_nano", "--size", "64", "--longest", "96", "--epochs", "10", "--batch-size", "4"),
    *("--workers", "1", "--log-every", "1", "--validate-every", "10", "--device", "cpu", "--lr", "0.00001"),
    *("--optim.name", "sgd", "--heads.preset", "nano", "--heads.proposals", "40", "--heads.samples", "16"),
    *("--augment.short-edges", "[64,80]", "--augment.scale-jitter", "null"),
]

ALONE = "--pyramid.norm-relu=false"


@pytest.mark.parametrize(("detector", "options"), [
    ("mask_rcnn", ["--norm=frozen", ALONE]), pytest.param("mask_rcnn", ["--norm=group"], marks=pytest.mark.slow),
    pytest.param("fcos", ["--norm=frozen"], marks=pytest.mark.slow),
    pytest.param("retinanet", ["--norm=group"], marks=pytest.mark.slow),
    pytest.param("cascade_mask_rcnn", ["--norm=frozen", ALONE], marks=pytest.mark.slow),
])  # fmt: skip
def test_two_processes_have_the_losses_of_one(
    data: Path, nano_weights: Path, tmp_path: Path, detector: str, options: list[str]
) -> None:
    """Regions are drawn by the image, losses are means over all processes, fresh norms share their statistics, and
    all processes pad their batches to one size.

    A rounding error that turns a single choice of non-maximum suppression ends the comparison. oneDNN rounds
    convolutions differently for batches of other sizes, hence PyTorch's own, which run image by image. Shared
    statistics are summed in another order than those of one process, so only FCOS, which suppresses nothing in
    training, has such norms here. SGD at a low
    rate, since the first steps of Adam are as long for gradients of rounding errors as for others.
    """
    script = tmp_path / "fishnet_without_onednn.py"
    script.write_text(WITHOUT_ONEDNN)
    found = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        settings = ["--data", data, "--out", out, *ALIKE, "--detector", detector, "--devices", devices, *options]
        weights = ["--weights", nano_weights] if "--norm=frozen" in options else []
        run("train", "detection", *settings, *weights, script=script)
        found.append(values(out, "train"))
    assert_equal_losses(*found, steps=20)
