"""`fishnet compare`: which runs there are, that it goes on, survives failures, and what its figures are."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fishnet.cli import main
from fishnet.commands.compare import _State, compare
from fishnet.deploy.compare.picture import _short, draw, page
from fishnet.deploy.compare.plan import Comparison
from fishnet.deploy.compare.results import cells, document, spelled, table
from fishnet.drawing.display import Display, Score
from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json
from fishnet.models.specs import parse_specs
from fishnet.runs import RunFolder
from fishnet.settings import resolve
from fishnet.tasks import get_task


def comparison(out: Path, models: str = "fishnet_nano,resnet10t", **settings: object) -> Comparison:
    return Comparison("classification", "DATA", parse_specs(models, "--models"), (0, 1), out, "cifar10", settings)


def test_every_model_is_trained_with_every_seed(tmp_path: Path) -> None:
    runs = list(comparison(tmp_path, "fishnet_nano,resnet18:layers=[1,1,1,1]").runs())
    assert [(run.seed, run.folder.path.relative_to(tmp_path).as_posix()) for run in runs] == [
        (0, "fishnet_nano/seed0"), (0, "resnet18_layers=_1_1_1_1/seed0"),
        (1, "fishnet_nano/seed1"), (1, "resnet18_layers=_1_1_1_1/seed1"),
    ]  # fmt: skip


def test_models_that_differ_in_what_names_cannot_have_get_folders_of_their_own(tmp_path: Path) -> None:
    models = "resnet18:channels=[8,16],resnet18:channels=[[8],16]"
    assert len(set(comparison(tmp_path, models).folders().values())) == 2


def test_runs_get_all_settings_as_the_command_line_reads_them(tmp_path: Path) -> None:
    """What the command line makes of the words is what was set."""
    settings = {
        "optim": {"lr": 0.2},
        "freeze": ["stem", "tail"],
        "cache": False,
        "ema": None,
        "preprocess": {"mean": [0.5] * 3},
    }
    one = comparison(tmp_path, "resnet18:channels=[8,16,32,64]:zero_init_last=false", **settings)
    words = one.command(next(iter(one.runs())))
    from fishnet.cli import COMMANDS, parse

    found = parse("train", COMMANDS["train"], COMMANDS["train"].load(), words[1:])
    assert found is not None
    config = resolve(
        get_task("classification"), None, {k: v for k, v in found.items() if k not in ("task", "recipe", "overwrite")}
    )
    assert (config.optim.lr, config.freeze, config.cache, config.ema) == (0.2, ["stem", "tail"], False, None)
    assert config.model_option == {"channels": [8, 16, 32, 64], "zero_init_last": False}
    assert (config.model, config.seed, config.data) == ("resnet18", 0, "DATA")
    assert found["recipe"] == "cifar10"
    assert found["overwrite"]


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    one = comparison(tmp_path)
    run = next(iter(one.runs()))
    run.folder.checkpoints.mkdir(parents=True)
    run.folder.last.touch()
    assert "--resume" in one.command(run)
    assert "--overwrite" not in one.command(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": "fishnet_nan"}, "Did you mean 'fishnet_nano'"),
        ({"models": ""}, "--models is missing"),
        ({"models": "resnet18,resnet18"}, "--models has resnet18 twice"),
        ({"models": "pytorchcv:fishnet150"}, "cannot be trained here"),
        ({"seeds": []}, "--seeds is missing"),
        ({"seeds": [1, 1]}, "--seeds has 1 twice"),
        ({"seed": 3}, "--seed differs between the runs of a comparison: use --seeds"),
        ({"data": ""}, "--data DIR is missing"),
        ({"jobs": 0}, "--jobs must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    given = {"models": "fishnet_nano", "out": str(tmp_path / "out"), "data": "DATA", **options}
    with pytest.raises(UsageError, match=message):
        compare("classification", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_runs_with_other_settings_are_not_taken(tmp_path: Path) -> None:
    before = comparison(tmp_path, epochs=3).shared()
    comparison(tmp_path, "resnet18", epochs=3).check_same(before)  # models may differ
    with pytest.raises(UsageError, match=r"runs of another comparison \(epochs: 3 -> 4\); choose another --out"):
        comparison(tmp_path, epochs=4).check_same(before)


def test_runs_that_are_replaced_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not finished, and if the folder is given by another path."""
    monkeypatch.chdir(tmp_path)
    old, new = (comparison(out, "fishnet_nano", epochs=3) for out in (Path("out"), tmp_path / "out"))
    finished, interrupted = old.runs()
    for path in (finished.folder.report_html, finished.folder.evaluation_json(), interrupted.folder.last):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    runs = [{"model": "fishnet_nano", "seed": 0, "folder": str(finished.folder.path)}]
    (tmp_path / "out" / "compare.json").write_text(json.dumps({**old.shared(), "runs": runs}))
    _State(new, overwrite=True)._open()
    for run in new.runs():
        assert not run.folder.path.exists()


def test_recipes_leave_options_of_a_fish_to_fish() -> None:
    kind = get_task("classification")
    assert resolve(kind, "cifar10", {"model": "resnet18"}).model_option == {}
    assert resolve(kind, "cifar10", {}).model_option == {"stem_stride": 2}
    assert resolve(kind, "cifar10", {"model": "fishnet_tiny"}).model_option == {"stem_stride": 2}
    assert resolve(kind, "imagenet_modern", {"model": "resnet18"}).model_option == {"drop_path_rate": 0.05}
    explicit = {"model": "resnet18", "model_option": {"stem_stride": 1}}  # an error, but the user's
    assert resolve(kind, "cifar10", explicit).model_option == {"stem_stride": 1}


DISPLAY = Display(
    {"loss": Score("loss", smaller_is_better=True), "top1": Score("top-1")}, ("top1",), frozenset({"top1"})
)


def figures(model: str, seed: int, top1: float, failed: str | None = None) -> Json:
    run: Json = {"model": model, "seed": seed, "folder": f"out/{model}/seed{seed}", "failed": failed}
    if failed is None:
        run |= {"epoch": 1, "parameters": 10**6, "multiply_adds": 10**8, "minutes": 2.0}
        run["metrics"] = {"top1": top1, "loss": 1 - top1}
    return run


def content(tmp_path: Path) -> Json:
    runs = [figures("fishnet_nano", 0, 0.5), figures("fishnet_nano", 1, 0.7)]
    runs += [figures("resnet10t", 0, 0.9), figures("resnet10t", 1, 0, "no <space> left")]
    speed = {"images_per_second": 100.0, "spread": 0.05, "seconds": 0.01}
    return document(comparison(tmp_path), runs, DISPLAY, 32, {"fishnet_nano": speed}, complete=True)


def test_means_and_deviations_are_those_of_the_seeds(tmp_path: Path) -> None:
    found = content(tmp_path)
    top1 = found["models"][0]["metrics"]["top1"]
    assert top1 == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(statistics.stdev([0.5, 0.7])),
        "values": [0.5, 0.7],
    }
    assert found["models"][1]["metrics"]["top1"] == {"mean": 0.9, "std": None, "values": [0.9]}
    assert found["models"][1]["failed"] == [{"seed": 1, "reason": "no <space> left"}]
    assert (found["primary"], found["smaller_is_better"]) == ("top1", False)


def test_the_best_model_is_first(tmp_path: Path) -> None:
    head, rows = cells(content(tmp_path))
    assert [row[0] for row in rows] == ["resnet10t", "fishnet_nano"]
    assert dict(zip(head, rows[1], strict=True))["top-1"] == "60.00 ± 14.14 %"
    assert dict(zip(head, rows[1], strict=True))["images/s"] == "100.0 ± 5.0"
    assert "resnet10t seed 1 failed: no <space> left" in table(content(tmp_path))
    assert spelled(None, True) == "–"


def test_the_page_escapes_and_links(tmp_path: Path) -> None:
    found = page(content(tmp_path), Path("out"))
    assert "no &lt;space&gt; left" in found
    assert 'href="fishnet_nano/seed0/report.html"' in found
    assert len(draw(content(tmp_path)).axes) == 3


OPTIONS = ["--recipe", "cifar10", "--epochs", "1", "--validate-every", "1", "--batch-size", "64", "--workers", "0"]


def test_the_plot_has_percent_and_round_numbers_at_its_ticks(tmp_path: Path) -> None:
    figure = draw(content(tmp_path))
    figure.canvas.draw()
    for axes in figure.axes:
        marks = [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_xticklabels(minor=True))]
        assert len([mark for mark in marks if mark]) >= 2
        assert not any("times" in mark or "^" in mark for mark in marks)
        assert all(text.get_text().endswith(" %") for text in axes.get_yticklabels())
    assert [_short(value) for value in (3.5, 20_000, 2e6, 1.25e9)] == ["3.5", "20 k", "2 M", "1.25 G"]


def test_models_are_trained_side_by_side_and_a_second_call_trains_what_is_missing(
    mini: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compare", "classification", "--data", str(mini("cifar10")), "--out", str(out), *OPTIONS, "--no-speed"]
    bad = "resnet10t:stem_type=7"
    assert main([*words, "--models", f"fishnet_nano,{bad}", "--seeds", "0"]) == 1
    found = json.loads((out / "compare.json").read_text("utf-8"))
    (trained, failed) = found["runs"]
    run = RunFolder(out / "fishnet_nano" / "seed0")
    evaluation = json.loads(run.evaluation_json().read_text("utf-8"))
    assert trained["metrics"]["top1"] == evaluation["metrics"]["top1"]
    assert failed["failed"]
    assert "--recipe cifar10" in " ".join(json.loads(run.environment_json.read_text("utf-8"))["command"])
    written = run.model_file.stat().st_mtime_ns
    assert main([*words, "--models", "fishnet_nano,resnet10t:stem_width=8:channels=[8,8,16,16]", "--seeds", "0"]) == 0
    assert run.model_file.stat().st_mtime_ns == written
    printed = capfd.readouterr().out
    assert "1 of 2 runs are finished" in printed
    assert "2 models x 1 seed: each run is trained, and evaluated on the validation split\n" in printed
    assert "next:" not in printed
    with (out / "compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["fishnet_nano", "resnet10t stem_width=8 channels=[8,8,16,16]"]
    assert int(rows[0]["parameters"]) > int(rows[1]["parameters"]) > 0
    with Image.open(out / "compare.png") as picture:
        assert picture.width > 500
    assert "fishnet_nano/seed0/report.html" in (out / "compare.html").read_text("utf-8")
    assert main([*words, "--models", "fishnet_nano", "--seeds", "0", "--size", "64"]) == 2


def test_an_interrupted_comparison_goes_on(mini: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", "classification", "--data", str(mini("cifar10")), "--out", str(out), *OPTIONS, "--no-speed"]
    words += ["--models", "fishnet_nano", "--seeds", "0", "--epochs", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fishnet", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = RunFolder(out / "fishnet_nano" / "seed0")
    end = time.monotonic() + 200
    while not (run.metrics_csv.exists() or process.poll() is not None) and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 143, said
    assert "the state is saved, continue with: fishnet compare classification" in said
    assert run.last.exists()
    assert not json.loads((out / "compare.json").read_text("utf-8"))["complete"]
    one = Comparison("classification", str(mini("cifar10")), parse_specs("fishnet_nano", ""), (0,), out)
    assert "--resume" in one.command(next(iter(one.runs())))


def test_runs_of_unknown_settings_are_not_mixed_with_others(tmp_path: Path) -> None:
    (tmp_path / "fishnet_nano" / "seed0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"has runs, such as .*seed0, but no compare\.json"):
        compare("classification", "fishnet_nano", str(tmp_path), "DATA", seeds=[0])
    assert (tmp_path / "fishnet_nano" / "seed0").exists()


def test_a_damaged_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{", "utf-8")
    with pytest.raises(FishnetError, match=r"compare\.json is damaged"):
        compare("classification", "fishnet_nano", str(tmp_path), "DATA")
