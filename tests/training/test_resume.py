"""A run that is killed and resumed equals the run that was never killed, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fishnet.metrics import MetricsFile
from tests.processes import assert_equal_runs, run, run_here, signal_at_step, start

PHOTOS, BATCH = 96, 80
"""Training images per class of ten, and per optimizer step."""
STEPS_PER_EPOCH = 10 * PHOTOS // BATCH
EPOCHS = "2"
STEPS = STEPS_PER_EPOCH * int(EPOCHS)
SETTINGS = [
    *("--model", "fishnet_nano", "--model-option", "stem_stride=2", "--model-option", "drop_path_rate=0.2"),
    *(
        "--size",
        "32",
        "--epochs",
        EPOCHS,
        "--batch-size",
        f"{BATCH}",
        "--accumulate",
        "2",
        "--workers",
        "2",
        "--seed",
        "7",
    ),
    *("--ema", "0.9", "--augment.rand-augment", "rand-m7-mstd0.5", "--augment.mixup", "0.2", "--augment.cutmix", "1.0"),
    *("--augment.random-erasing", "0.2", "--optim.warmup-epochs", "1", "--log-every", "1", "--drop-rate", "0.1"),
    *("--checkpoint-minutes", "0.01", "--freeze", "[stem]"),
]


def train(data: Path, out: Path, *more: str) -> list[str | Path]:
    return ["train", "classification", "--data", data, "--out", out, *SETTINGS, *more]


@pytest.fixture(scope="module")
def data(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some photos of every class."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", PHOTOS), ("val", 10)):
        for source in sorted((mini("cifar10") / split).iterdir()):
            (folder / split / source.name).mkdir(parents=True)
            for path in sorted(source.iterdir())[:count]:
                shutil.copy(path, folder / split / source.name)
    return folder


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is never killed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(*train(data, out))
    return out


def kill_and_resume(data: Path, straight: Path, out: Path, step: int) -> None:
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", step, signal.SIGKILL)
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


def test_a_run_that_is_stopped_and_killed_resumes_bit_identical(data: Path, straight: Path, tmp_path: Path) -> None:
    out, resume = tmp_path / "run", []
    kill = signal.SIGKILL
    for step, signum, code, memory in (
        (4, signal.SIGTERM, 143, "saver"),
        (STEPS_PER_EPOCH + 3, signal.SIGINT, 130, "balanced"),
        (STEPS - 5, kill, -kill, "fast"),
    ):
        stopped = start(*train(data, out, *resume))
        output = signal_at_step(stopped, out / "metrics.csv", step, signum)
        assert stopped.returncode == code, output
        if signum != kill:
            assert f"the state is saved, continue with: fishnet train --resume {out}" in output
            assert "Traceback" not in output
        logged = [int(row["step"]) for row in MetricsFile(out / "metrics.csv").read() if row["split"] == "train"]
        assert step <= max(logged) < step + 5
        resume = ["--resume", "--memory", memory]  # which changes no bit
    run(*train(data, out, *resume))
    assert_equal_runs(straight, out, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
def test_killed_at_random_steps(data: Path, straight: Path, tmp_path: Path, trial: int) -> None:
    step = random.Random(trial).randint(2, STEPS - 2)
    print(f"trial {trial}: killed at step {step} of {STEPS}")
    kill_and_resume(data, straight, tmp_path / "run", step)


def test_resume_with_changed_settings_is_refused_with_their_names(data: Path, straight: Path, tmp_path: Path) -> None:
    arguments = train(data, straight, "--resume")
    output = run_here(*arguments, "--augment.mixup", "0.5", "--seed", "8", code=2)
    assert "seed: 7 -> 8" in output
    assert "augment.mixup: 0.2 -> 0.5" in output
    assert "--allow-changes" in output


def test_a_folder_that_holds_a_run_is_refused(data: Path, straight: Path) -> None:
    output = run_here(*train(data, straight), code=2)
    assert "--resume, --overwrite or another --out" in output
