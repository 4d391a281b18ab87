"""`fishnet predict` in a process of its own: paths on standard input, Ctrl-C, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.cli import main
from fishnet.config import PreprocessConfig
from fishnet.models import create_model
from tests.models_on_disk import classifier_card, save_classifier
from tests.processes import start

PATIENCE = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = create_model("fishnet_nano", num_classes=3, stem_stride=1)
    torch.nn.init.normal_(network.get_classifier().weight, std=0.1)
    card = classifier_card("abc", options={"stem_stride": 1}, preprocess=PreprocessConfig(crop_pct=1.0))
    folder = tmp_path_factory.mktemp("run")
    save_classifier(folder / "model.safetensors", network, card)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    files = [folder / f"photo {number:03d} é.png" for number in range(40)]
    for path in files:
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    return files


@pytest.fixture(scope="module")
def whole(run: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The entries of a call that was not disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["predict", str(run), str(photos[0].parent), "--out", str(out), "--device", "cpu"]) == 0
    return read(out)["images"]


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text("utf-8"))


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    begin = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - begin < PATIENCE
        time.sleep(0.02)


def same(entries: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [entry["file"] for entry in entries] == [entry["file"] for entry in wanted]
    for entry, other in zip(entries, wanted, strict=True):
        assert [p["label"] for p in entry["predictions"]] == [p["label"] for p in other["predictions"]]
        scores = [p["score"] for p in other["predictions"]]
        assert [p["score"] for p in entry["predictions"]] == pytest.approx(scores, abs=1e-5)


def test_listed_paths_get_results_as_they_come_and_ctrl_c_says_how_to_go_on(
    run: Path, photos: list[Path], whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--device", "cpu", "--workers", "1", "--top", "2"]
    process = start("predict", run, "-", "--out", out, *options, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for count, path in enumerate(photos[:3], 1):
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        wait_for(lambda count=count: len(lines(out)) == count, process)  # while the list is still open
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130  # though the list is still open
    printed = process.communicate()[0]
    document = read(out)
    assert document["complete"] is False
    assert [entry["file"] for entry in document["images"]] == [str(path) for path in photos[:3]]
    assert all(f"{path}: " in printed for path in photos[:3])
    assert (out / "contact_sheet_01.jpg").exists()
    assert lines(out) == []
    command = re.search(r"continue with: fishnet (predict .*)", printed)
    assert command is not None
    assert "--top 2" in command[1]
    assert "--workers 1" in command[1]
    assert "Traceback" not in printed


def test_an_interrupted_folder_is_completed_by_the_command_that_is_named(
    run: Path, photos: list[Path], whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "an out"
    words = ["predict", run, photos[0].parent, "--out", out, "--batch-size", "1", "--device", "cpu", "--no-pictures"]
    process = start(*words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: len(lines(out)) >= 2, process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 143, printed
    done = read(out)
    assert not done["complete"]
    assert 2 <= len(done["images"]) < len(photos)
    left = (out / "remaining.txt").read_text("utf-8").splitlines()
    assert [entry["file"] for entry in done["images"]] + left == [str(path) for path in photos]
    command = re.search(r"continue with: fishnet (predict .*)", printed)
    assert command is not None, printed
    rest = subprocess.run(f"{sys.executable} -m fishnet {command[1]}", shell=True, capture_output=True, text=True)
    assert rest.returncode == 0, rest.stderr
    other = read(Path(f"{out}_rest"))
    assert other["complete"]
    same(done["images"] + other["images"], whole)


def test_an_interrupted_video_can_be_played(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.prediction.test_video import decoded, make

    clip, out = make(tmp_path / "long.mp4", 3000, size=(64, 64)), tmp_path / "out"
    process = start("predict", run, clip, "--out", out, "--device", "cpu", "--batch-size", "1")
    made = out / "videos" / "long.jsonl"
    wait_for(lambda: made.exists() and made.read_bytes().count(b"\n") >= 3, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130, printed
    (entry,) = read(out)["videos"]
    assert entry["complete"] is False
    assert 3 <= entry["frames"] < 3000
    assert len(decoded(out / entry["video"])) == entry["frames"] == made.read_bytes().count(b"\n")
    assert re.search(rf"continue with: fishnet predict {run} {clip} --out {out}_rest --device cpu", printed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_command_leaves_readable_lines_and_no_processes(run: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["predict", run, photos[0].parent, "--out", out, "--batch-size", "1", "--device", "cpu"]
    process = start(*words)
    wait_for(lambda: len(lines(out)) >= 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate()
    assert 2 <= len(lines(out)) < len(photos)
    begin = time.monotonic()
    while any(Path(f"/proc/{child}/stat").exists() for child in children) and time.monotonic() - begin < 20:
        time.sleep(0.1)
    assert not [child for child in children if is_running(int(child))]
    message = start(*words).communicate(timeout=PATIENCE)[0]
    assert re.search(r"results of a predict that was killed.*--overwrite", message)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
