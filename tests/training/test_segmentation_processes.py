"""Segmentation runs that are killed, and segmentation on two processes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

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

STEPS = 2 * 4
SETTINGS = [
    *("--model", "fishnet_nano", "--size", "64", "--epochs", "2", "--batch-size", "2", "--workers", "2"),
    *("--seed", "3", "--ema", "0.9", "--log-every", "1", "--checkpoint-minutes", "0.001", "--device", "cpu"),
    *("--norm", "group", "--augment.crop", "48,64", "--pixel.losses", "cross_entropy,dice", "--validate-every", "1"),
    *("--pixel.auxiliary", "--model-option", "drop_path_rate=0.1", "--pixel.class-weights", "enet"),
]


@pytest.fixture(scope="module")
def data(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight small photos of CamVid to train on, and seven to evaluate on."""
    source, root = mini("camvid"), tmp_path_factory.mktemp("camvid") / "data"
    for split, count in (("train", 8), ("val", 7)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
            for path in sorted((source / split / kind).iterdir())[:count]:
                with Image.open(path) as image:
                    image.crop((100, 100, 260, 220)).save(root / split / kind / f"{path.stem}.png")
    shutil.copy(source / "classes.json", root)
    return root


def train(data: Path, out: Path, *more: str) -> list[str | Path]:
    return ["train", "segmentation", "--data", data, "--out", out, *SETTINGS, *more]


@pytest.mark.slow  # the runs of multitask, with a pixel head, take the same path in every suite
def test_a_killed_run_resumes_bit_identical(data: Path, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    run(*train(data, straight))
    killed = start(*train(data, out))
    signal_at_step(killed, out / "metrics.csv", 6, signal.SIGKILL)
    run(*train(data, out, "--resume"))
    assert_equal_runs(straight, out, STEPS)


@pytest.mark.slow  # the runs of multitask, with a pixel head, take the same path in every suite
def test_two_processes_judge_every_image_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    run(*train(data, out, "--devices", "2", "--epochs", "1"))
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS // 2
    options = ("--batch-size", "1", "--device", "cpu")
    run_here("evaluate", out, "--data", data, "--json", tmp_path / "figures.json", *options)
    found = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert found["images"] == 7
    assert found["metrics"] == pytest.approx({name: v for (_, name), v in values(out, "val").items()}, abs=1e-6)


ALIKE = [
    *("--model", "fishnet_nano", "--size", "64", "--epochs", "10", "--batch-size", "4", "--workers", "1"),
    *("--log-every", "1", "--validate-every", "10", "--device", "cpu", "--lr", "0.00001", "--optim.name", "sgd"),
    *("--augment.crop", "48,64", "--pixel.auxiliary", "--pixel.dropout", "0"),
]


@pytest.mark.parametrize(("losses", "options"), [
    ("cross_entropy,dice,ohem=0.5", ["--norm=frozen", "--pixel.class-weights=enet"]),
    pytest.param("focal,lovasz", ["--norm=group", "--pixel.decoder=upernet"], marks=pytest.mark.slow),
])  # fmt: skip
def test_two_processes_have_the_losses_of_one(
    data: Path, nano_weights: Path, tmp_path: Path, losses: str, options: list[str]
) -> None:
    """Losses of pixels are those of the pixels of all processes, and the norms of the head share their statistics."""
    script = tmp_path / "fishnet_without_onednn.py"
    script.write_text(WITHOUT_ONEDNN)
    found = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        settings = ["--data", data, "--out", out, *ALIKE, "--pixel.losses", losses, "--devices", devices, *options]
        weights = ["--weights", nano_weights] if "--norm=frozen" in options else []
        run("train", "segmentation", *settings, *weights, script=script)
        found.append(values(out, "train"))
    assert_equal_losses(*found, steps=20)
