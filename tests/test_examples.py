"""The scripts of examples/ run as their own docstrings say, and do what they promise."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLES = PROJECT / "examples"
SCRIPTS = sorted(EXAMPLES.rglob("*.py"))
QUICK = ("--model", "fishnet_nano", "--size", "64", "--epochs", "1")


def environment(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that finds this checkout first, then the folders."""
    path = [str(PROJECT / "src"), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def script(name: str, *words: str | Path, cwd: Path) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_scripts_are_short() -> None:
    assert len(SCRIPTS) == 3
    assert not [path for path in SCRIPTS if len(path.read_text("utf-8").splitlines()) >= 80]


def test_photos_to_predictions(mini: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("cat", "ship"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for path in sorted((mini("cifar10") / "train" / name).iterdir())[:8]:
            shutil.copy(path, tmp_path / "photos" / name)
    shutil.copytree(tmp_path / "photos" / "cat", tmp_path / "new_photos")
    before = sorted((tmp_path / "photos").rglob("*"))
    said = script("photos_to_predictions.py", "photos", "new_photos", *QUICK, cwd=tmp_path)
    assert sorted((tmp_path / "photos").rglob("*")) == before
    named = [line.split(": ") for line in said.splitlines()[-8:]]
    assert [name for name, _ in named] == sorted(path.name for path in (tmp_path / "new_photos").iterdir())
    assert all(answer.split()[0] in ("cat", "ship") for _, answer in named)
    assert (tmp_path / "runs" / "photos" / "report.html").exists()


def test_a_fish_in_other_libraries(tmp_path: Path) -> None:
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation_models_pytorch is not installed; pip install '.[test]'")
    said = script("fish_elsewhere.py", cwd=tmp_path)
    assert "torchvision RetinaNet: {'classification': " in said
    assert "segmentation_models_pytorch U-Net: (2, 5, 128, 128)" in said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package of the own task, installed."""
    root = tmp_path_factory.mktemp("own_task")
    source = shutil.copytree(EXAMPLES / "own_task", root / "source")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--no-index", "--target", str(root / "site"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root / "site"


def test_an_own_task_from_unlabeled_photos(site: Path, mini: Callable[[str], Path], tmp_path: Path) -> None:
    shell = {"env": environment(site), "cwd": tmp_path}
    quick = ("--model", "fishnet_nano", "--size", "64", "--epochs", "1", "--workers", "0", "--device", "cpu")
    shutil.copytree(mini("pennfudan") / "train", tmp_path / "unlabeled" / "train")
    (tmp_path / "unlabeled" / "val").mkdir()
    for path in sorted((mini("pennfudan") / "val").iterdir())[:4]:
        shutil.copy(path, tmp_path / "unlabeled" / "val")
    assert "how far a photo is turned" in run("train", "--help", **shell)
    run("train", "rotation", "--data", "unlabeled", "--out", "runs/rotation", *quick, **shell)
    evaluation = json.loads((tmp_path / "runs" / "rotation" / "evaluation_val.json").read_text())
    assert evaluation["images"] == 4 * 4
    assert "flip: 0.0" in (tmp_path / "runs" / "rotation" / "config.yaml").read_text()
    run("predict", "runs/rotation", "unlabeled/val", "--out", "predictions", "--top", "1", "--workers", "0", **shell)
    entries = json.loads((tmp_path / "predictions" / "results.json").read_text())["images"]
    turns = {"upright", "90 degrees", "180 degrees", "270 degrees"}
    assert len(entries) == 4
    assert all(entry["predictions"][0]["label"] in turns for entry in entries)
    for name in ("cat", "ship"):
        shutil.copytree(mini("cifar10") / "train" / name, tmp_path / "photos" / "train" / name)
        shutil.copytree(mini("cifar10") / "val" / name, tmp_path / "photos" / "val" / name)
    start = ("--data", "photos", "--weights", "runs/rotation", "--out", "runs/photos")
    said = run("train", "classification", *start, *quick, "--max-steps", "1", **shell)
    assert "runs/rotation/model.safetensors" in said


def test_the_photos_of_the_own_task_are_turned_as_their_class_says(
    mini: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.syspath_prepend(EXAMPLES / "own_task")
    from rotation import open_photos

    dataset = open_photos(mini("pennfudan"), "val", "stop")
    upright = np.asarray(Image.open(mini("pennfudan") / dataset.samples[0].name).convert("RGB"))
    for index in range(4):
        assert int(dataset[index]["target"]) == index
        assert np.array_equal(np.asarray(dataset.load(index)), np.rot90(upright, index))
