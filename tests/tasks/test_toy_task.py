"""A task that only the tests have, found through an entry point: everything works without a change in the library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fishnet.metrics import MetricsFile
from fishnet.runs import RunFolder
from fishnet.tasks import get_task, loaded_tasks
from tests.processes import assert_equal_runs, run, run_alone, run_here, signal_at_step, start
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


@pytest.fixture
def known(shell: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process find the task too, which saves the start of others."""
    monkeypatch.setattr(sys, "path", [shell["env"]["PYTHONPATH"].split(os.pathsep)[0], *sys.path])
    forget()
    yield
    forget()


def forget() -> None:
    get_task.cache_clear()
    loaded_tasks.cache_clear()


@pytest.fixture(scope="module")
def photos(home: Path) -> Path:
    return write(home / "photos")


@pytest.fixture(scope="module")
def trained(home: Path, photos: Path, shell: dict[str, Any]) -> RunFolder:
    said = run("train", "brightness", "--data", photos, "--out", home / "run", *QUICK, **shell)
    assert "recipe bright: there is no other" in said
    return RunFolder(home / "run")


def test_the_shell_finds_the_task(shell: dict[str, Any]) -> None:
    assert "brightness      how bright a photo is" in run("train", "--help", **shell)


@pytest.mark.usefixtures("known")
def test_help_and_errors_know_its_settings(photos: Path, home: Path) -> None:
    told = run_here("train", "brightness", "--help")
    assert "Settings of brightness:" in told
    assert "Standard deviation of the random change of brightness." in told
    assert "--label-smoothing" not in told
    told = run_here("predict", "--help")
    assert "--digits N" in told
    assert "--scale.factor X" in told
    assert "usage: fishnet predict RUN INPUTS [INPUTS ...] --out OUT [options]" in told
    refused = run_here("train", "brightness", "--data", photos, "--out", home / "x", "--jitter", "-1", code=2)
    assert "jitter is -1.0; it must not be negative" in refused
    refused = run_here("train", "detection", "--data", photos, "--out", home / "x", "--jitter", "1", code=2)
    assert "--jitter" in refused
    assert "brightness" in refused
    assert "dark photos: 4" in run_here("data", "check", "brightness", photos, "--darkest", "0.1", code=1)


def test_a_killed_run_resumes_to_the_same_bits(
    home: Path, photos: Path, shell: dict[str, Any], trained: RunFolder
) -> None:
    command = ["train", "brightness", "--data", photos, "--out", home / "killed", *QUICK]
    signal_at_step(start(*command, **shell), home / "killed" / "metrics.csv", 4)
    run(*command, "--resume", **shell)
    assert_equal_runs(trained.path, home / "killed", 9)


@pytest.mark.usefixtures("known")
def test_settings_that_depend_on_another_follow_it(home: Path, photos: Path) -> None:
    quick = ("--device", "cpu", "--max-steps", "1")
    run_here("train", "brightness", "--data", photos, "--out", home / "l2", "--loss", "l2", *quick)
    text = RunFolder(home / "l2").config_yaml.read_text()
    assert "epochs: 5" in text
    assert "loss: l2" in text
    run_here("train", "brightness", "--data", photos, "--out", home / "other", "--weights", home / "l2", *quick)


@pytest.mark.usefixtures("known")
def test_a_run_is_evaluated_predicted_and_reported(home: Path, photos: Path, trained: RunFolder) -> None:
    said = run_here("evaluate", trained.path, "--data", photos, "--workers", "0")
    assert "within 0.1:" in said
    found = json.loads((trained.path / "evaluation_val.json").read_text())
    logged = {row["name"] for row in MetricsFile(trained.metrics_csv).read() if row["split"] == "val"}
    best = json.loads((trained.path / "evaluation_val.json").read_text())
    assert found["metrics"] == pytest.approx(best["metrics"])
    assert set(found["metrics"]) == logged
    assert len(json.loads((trained.path / "pairs_val.json").read_text())) == 8

    run_here("predict", trained.path, photos / "val", "--out", home / "found", "--digits", "1")
    document = json.loads((home / "found" / "results.json").read_text())
    assert document["task"] == "brightness"
    assert all(entry["brightness"] == round(entry["brightness"], 1) for entry in document["images"])
    assert len(list((home / "found").glob("*_swatch.png"))) == 8
    # options of its own, one in a group, one of a name that another task has with another type
    own = ("--scale.factor", "100", "--scale.unit", "%", "--score")
    run_here("predict", trained.path, photos / "val", "--out", home / "scaled", "--digits", "0", *own)
    scaled = json.loads((home / "scaled" / "results.json").read_text())["images"]
    assert all(entry["brightness"] == round(entry["brightness"]) for entry in scaled)
    assert max(entry["brightness"] for entry in scaled) > 1
    assert {(entry["unit"], entry["score"]) for entry in scaled} == {("%", 1.0)}
    refused = run_here("predict", trained.path, photos / "val", "--out", home / "y", "--overlap", "0.5", code=2)
    assert "--overlap is not an option of brightness; its options: --digits, --scale, --score" in refused
    refused = run_here("predict", trained.path, photos / "val", "--out", home / "y", "--scale.size", "2", code=2)
    assert "unknown option --scale.size" in refused

    report = trained.report_html.read_text()
    assert "share within 0.1" in report
    assert "Found and true brightness" in report


@pytest.mark.usefixtures("known")
def test_an_export_runs_alone(home: Path, photos: Path, trained: RunFolder) -> None:
    out = home / "exported"
    run_here("export", trained.path, "--format", "onnx", "--images", photos / "val", "--out", out)
    run_here("predict", trained.path, photos / "val", "--out", home / "theirs")
    run_here("predict", out, photos / "val", "--out", home / "ours")
    theirs, ours = (json.loads((home / name / "results.json").read_text())["images"] for name in ("theirs", "ours"))
    wanted = [entry["brightness"] for entry in theirs]
    assert len(set(wanted)) > 1
    assert [entry["brightness"] for entry in ours] == pytest.approx(wanted, abs=2e-3)

    files = [str(photos / "val" / Path(entry["file"]).name) for entry in theirs]
    alone = run_alone(out, *files, away=home / "away")
    assert alone.returncode == 0, alone.stderr
    found = [json.loads(line)["predictions"][0]["brightness"] for line in alone.stdout.splitlines()]
    assert found == pytest.approx(wanted, abs=2e-3)


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
