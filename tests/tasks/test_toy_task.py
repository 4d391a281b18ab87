"""A task that only the tests have, found through an entry point: everything works without a change in the library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fishnet.metrics import MetricsFile
from fishnet.runs import RunFolder
from tests.processes import assert_equal_runs, run, signal_at_step, start
from tests.toy.data import write
from tests.toy.task import install

PROJECT = Path(__file__).resolve().parents[2]
QUICK = ("--device", "cpu", "--epochs", "3", "--checkpoint-minutes", "0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def shell(home: Path) -> dict[str, Any]:
    """Options of a process that knows the task."""
    path = [str(install(home / "site")), str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(path)}}


@pytest.fixture(scope="module")
def photos(home: Path) -> Path:
    return write(home / "photos")


@pytest.fixture(scope="module")
def trained(home: Path, photos: Path, shell: dict[str, Any]) -> RunFolder:
    said = run("train", "brightness", "--data", photos, "--out", home / "run", *QUICK, **shell)
    assert "recipe bright: there is no other" in said
    return RunFolder(home / "run")


def test_the_shell_knows_the_task_and_its_settings(shell: dict[str, Any], photos: Path, home: Path) -> None:
    assert "brightness      how bright a photo is" in run("train", "--help", **shell)
    told = run("train", "brightness", "--help", **shell)
    assert "Settings of brightness:" in told
    assert "Standard deviation of the random change of brightness." in told
    assert "--label-smoothing" not in told
    told = run("predict", "--help", **shell)
    assert "--digits N" in told
    assert "--scale.factor X" in told
    assert "usage: fishnet predict RUN INPUTS [INPUTS ...] --out OUT [options]" in told
    refused = run("train", "brightness", "--data", photos, "--out", home / "x", "--jitter", "-1", code=2, **shell)
    assert "jitter is -1.0; it must not be negative" in refused
    refused = run("train", "detection", "--data", photos, "--out", home / "x", "--jitter", "1", code=2, **shell)
    assert "--jitter" in refused
    assert "brightness" in refused
    assert "dark photos: 4" in run("data", "check", "brightness", photos, "--darkest", "0.1", code=1, **shell)


def test_a_killed_run_resumes_to_the_same_bits(
    home: Path, photos: Path, shell: dict[str, Any], trained: RunFolder
) -> None:
    command = ["train", "brightness", "--data", photos, "--out", home / "killed", *QUICK]
    signal_at_step(start(*command, **shell), home / "killed" / "metrics.csv", 4)
    run(*command, "--resume", **shell)
    assert_equal_runs(trained.path, home / "killed", 9)


def test_settings_that_depend_on_another_follow_it(home: Path, photos: Path, shell: dict[str, Any]) -> None:
    quick = ("--device", "cpu", "--max-steps", "1")
    run("train", "brightness", "--data", photos, "--out", home / "l2", "--loss", "l2", *quick, **shell)
    text = RunFolder(home / "l2").config_yaml.read_text()
    assert "epochs: 5" in text
    assert "loss: l2" in text
    run("train", "brightness", "--data", photos, "--out", home / "other", "--weights", home / "l2", *quick, **shell)


def test_a_run_is_evaluated_predicted_and_reported(
    home: Path, photos: Path, shell: dict[str, Any], trained: RunFolder
) -> None:
    said = run("evaluate", trained.path, "--data", photos, "--workers", "0", **shell)
    assert "within 0.1:" in said
    found = json.loads((trained.path / "evaluation_val.json").read_text())
    logged = {row["name"] for row in MetricsFile(trained.metrics_csv).read() if row["split"] == "val"}
    best = json.loads((trained.path / "evaluation_val.json").read_text())
    assert found["metrics"] == pytest.approx(best["metrics"])
    assert set(found["metrics"]) == logged
    assert len(json.loads((trained.path / "pairs_val.json").read_text())) == 8

    run("predict", trained.path, photos / "val", "--out", home / "found", "--digits", "1", **shell)
    document = json.loads((home / "found" / "results.json").read_text())
    assert document["task"] == "brightness"
    assert all(entry["brightness"] == round(entry["brightness"], 1) for entry in document["images"])
    assert len(list((home / "found").glob("*_swatch.png"))) == 8
    # options of its own, one in a group, one of a name that another task has with another type
    own = ("--scale.factor", "100", "--scale.unit", "%", "--score")
    run("predict", trained.path, photos / "val", "--out", home / "scaled", "--digits", "0", *own, **shell)
    scaled = json.loads((home / "scaled" / "results.json").read_text())["images"]
    assert all(entry["brightness"] == round(entry["brightness"]) for entry in scaled)
    assert max(entry["brightness"] for entry in scaled) > 1
    assert {(entry["unit"], entry["score"]) for entry in scaled} == {("%", 1.0)}
    refused = run("predict", trained.path, photos / "val", "--out", home / "y", "--overlap", "0.5", code=2, **shell)
    assert "--overlap is not an option of brightness; its options: --digits, --scale, --score" in refused
    refused = run("predict", trained.path, photos / "val", "--out", home / "y", "--scale.size", "2", code=2, **shell)
    assert "unknown option --scale.size" in refused

    report = trained.report_html.read_text()
    assert "share within 0.1" in report
    assert "Found and true brightness" in report


def test_a_broken_package_is_one_line(home: Path) -> None:
    about = home / "broken" / "broken-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fishnet.tasks]\nbroken = no_such_module:TASK\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(home / "broken"), os.environ.get("PYTHONPATH", "")]),
    }
    said = run("train", "broken", "--data", "x", "--out", "y", code=2, env=environment)
    assert "task 'broken' cannot be loaded from no_such_module:TASK" in said
    said = run("predict", "--help", env=environment)
    assert "warning: task 'broken' cannot be loaded" in said
    assert "Options for detection" in said
