"""A run that is killed and resumed equals the run that was never killed, bit for bit."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import assert_equal_runs, run, signal_at_step, start

STEPS_PER_EPOCH = 2000 // 160
EPOCHS = "2"
STEPS = STEPS_PER_EPOCH * int(EPOCHS)
SETTINGS = [
    *("--model", "fishnet_nano", "--model-option", "stem_stride=2", "--model-option", "drop_path_rate=0.2"),
    *("--size", "32", "--epochs", EPOCHS, "--batch-size", "160", "--accumulate", "2", "--workers", "2", "--seed", "7"),
    *("--ema", "0.9", "--augment.rand-augment", "rand-m7-mstd0.5", "--augment.mixup", "0.2", "--augment.cutmix", "1.0"),
    *("--augment.random-erasing", "0.2", "--optim.warmup-epochs", "1", "--log-every", "1", "--drop-rate", "0.1"),
    *("--checkpoint-minutes", "0.01", "--freeze", "[stem]"),
]


def train(data: Path, out: Path, *more: str) -> list[str | Path]:
    return ["train", "classification", "--data", data, "--out", out, *SETTINGS, *more]


@pytest.fixture(scope="module")
def straight(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is never killed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(*train(mini("cifar10"), out))
    return out


def kill_and_resume(data: Path, straight: Path, out: Path, step: int) -> None:
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", step, signal.SIGKILL)
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


def test_a_killed_run_resumes_bit_identical(mini: Callable[[str], Path], straight: Path, tmp_path: Path) -> None:
    kill_and_resume(mini("cifar10"), straight, tmp_path / "run", step=STEPS_PER_EPOCH + 5)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
def test_killed_at_random_steps(mini: Callable[[str], Path], straight: Path, tmp_path: Path, trial: int) -> None:
    step = random.Random(trial).randint(2, STEPS - 2)
    print(f"trial {trial}: killed at step {step} of {STEPS}")
    kill_and_resume(mini("cifar10"), straight, tmp_path / "run", step)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_and_the_resumed_run_is_the_same(
    mini: Callable[[str], Path], straight: Path, tmp_path: Path, signum: int, code: int
) -> None:
    out = tmp_path / "run"
    stopped = start(*train(mini("cifar10"), out))
    output = signal_at_step(stopped, out / "metrics.csv", STEPS_PER_EPOCH + 3, signum)
    assert stopped.returncode == code, output
    assert f"the state is saved, continue with: fishnet train --resume {out}" in output
    assert "Traceback" not in output
    run(*train(mini("cifar10"), out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


def test_resume_with_changed_settings_is_refused_with_their_names(
    mini: Callable[[str], Path], straight: Path, tmp_path: Path
) -> None:
    arguments = train(mini("cifar10"), straight, "--resume")
    output = run(*arguments, "--augment.mixup", "0.5", "--seed", "8", code=2)
    assert "seed: 7 -> 8" in output
    assert "augment.mixup: 0.2 -> 0.5" in output
    assert "--allow-changes" in output


def test_a_folder_that_holds_a_run_is_refused(mini: Callable[[str], Path], straight: Path) -> None:
    output = run(*train(mini("cifar10"), straight), code=2)
    assert "--resume, --overwrite or another --out" in output
