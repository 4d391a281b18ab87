"""Curves, smoothing and the confusion matrix, read back from the figures' data."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fishnet.drawing import style
from fishnet.drawing.confusion import draw_confusion
from fishnet.drawing.display import Display, Score
from fishnet.errors import FishnetError, UsageError
from fishnet.report.curves import draw_curves, read_metrics, smooth
from fishnet.tasks import get_task

DISPLAY = get_task("classification").display


def write_rows(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "epoch", "split", "name", "value"])
        writer.writerows(rows)
    return path


def lines(figure: Figure) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """Return (title, label) -> (x, y) of every line in a figure that the legend could name."""
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            found[axes.get_title(loc="left"), str(line.get_label()).split(" (")[0]] = (x.tolist(), y.tolist())
    return found


def full_run(path: Path, epochs: int, steps: int = 4) -> Path:
    rows: list[tuple[object, ...]] = []
    for step in range(1, epochs * steps + 1):
        epoch = (step - 1) // steps
        rows += [(step, epoch, "train", "loss", 2.0 / step), (step, epoch, "train", "lr", 0.1)]
        if step % steps == 0:
            rows += [(step, epoch, "val", "loss", 1.0 / step), (step, epoch, "val", "top1", 0.5 + 0.01 * epoch)]
            rows += [(step, epoch, "val", "top5", 0.9), (step, epoch, "val", "ece", 0.1)]
    return write_rows(path, rows)


def test_curves_show_what_the_file_holds(tmp_path: Path) -> None:
    drawn = lines(draw_curves(full_run(tmp_path / "metrics.csv", epochs=3), DISPLAY))
    assert drawn["Loss", "val"] == ([4, 8, 12], [1 / 4, 1 / 8, 1 / 12])
    assert drawn["Validation", "top-1"] == ([4, 8, 12], [50, 51, 52])
    assert drawn["Validation", "top-5"][1] == [90, 90, 90]
    assert drawn["Learning rate", "_child0"] == (list(range(1, 13)), [0.1] * 12)
    assert drawn["Loss", "train"][1] == [2 / step for step in range(1, 13)]
    assert ("Validation", "calibration error") not in drawn


def test_one_epoch_and_missing_parts_are_drawn(tmp_path: Path) -> None:
    one = draw_curves(full_run(tmp_path / "one.csv", epochs=1), DISPLAY)
    assert all(line.get_marker() == "o" for axes in one.axes for line in axes.lines)
    only_train = draw_curves(write_rows(tmp_path / "train.csv", [(1, 0, "train", "loss", 1.0)]), DISPLAY)
    assert [axes.get_title(loc="left") for axes in only_train.axes] == ["Loss"]
    multi = lines(draw_curves(write_rows(tmp_path / "multi.csv", [(1, 0, "val", "map", 0.25)]), DISPLAY))
    assert multi["Validation", "mAP"] == ([1], [25])
    unknown = write_rows(tmp_path / "other.csv", [(1, 0, "val", "loss", 1.0), (1, 0, "val", "lines_per_page", 31.0)])
    for display in (DISPLAY, None):
        other = lines(draw_curves(unknown, display))
        assert other["Validation", "lines_per_page"] == ([1], [31])
        assert ("Validation", "loss") not in other
    for path in (tmp_path / "absent.csv", write_rows(tmp_path / "empty.csv", [])):
        empty = draw_curves(path, DISPLAY)
        assert not empty.axes
        assert "No metrics" in empty.texts[0].get_text()


def test_a_spike_does_not_flatten_the_loss(tmp_path: Path) -> None:
    rows = [(step, 0, "train", "loss", 500.0 if step == 1 else 2.0 - step / 100) for step in range(1, 101)]
    axes = draw_curves(write_rows(tmp_path / "metrics.csv", rows)).axes[0]
    assert axes.get_ylim()[1] < 4
    assert "500" in axes.texts[0].get_text()


def test_nan_and_cut_rows_do_no_harm(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "metrics.csv",
        [
            (1, 0, "train", "loss", 1.0),
            (2, 0, "train", "loss", "nan"),
            (3, 0, "train", "loss", "inf"),
            (3, 0, "val", "top1", "nan"),
            ("x", 0, "val", "top1", 1.0),
        ],
    )
    with path.open("a") as stream:
        stream.write("4,0,train,lo")
    series = read_metrics(path)
    assert series["train", "loss"].steps == [1, 2, 3]
    assert math.isnan(series["train", "loss"].values[1])
    style.figure_bytes(draw_curves(path), "png", dpi=40)


def test_last_of_two_equal_rows_counts(tmp_path: Path) -> None:
    rows = [(2, 0, "val", "top1", 0.5), (1, 0, "val", "top1", 0.1), (2, 0, "val", "top1", 0.6)]
    series = read_metrics(write_rows(tmp_path / "metrics.csv", rows))
    assert (series["val", "top1"].steps, series["val", "top1"].values) == ([1, 2], [0.1, 0.6])


def test_a_folder_is_no_metrics_file(tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match="cannot read the metrics"):
        read_metrics(tmp_path)


def test_smoothing_is_a_centered_mean_without_nan() -> None:
    values = list(np.random.default_rng(0).normal(size=200))
    values[50] = math.nan
    half = 4
    expected = [np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(200)]
    np.testing.assert_allclose(smooth(values, share=2 * half / 200), expected)
    assert np.isnan(smooth([math.nan, math.nan])).all()
    assert smooth([1.0, 3.0]).tolist() == [1.0, 3.0]
    assert smooth([1e30] + [0.5] * 999)[-1] == pytest.approx(0.5)


def test_confusion_shades_rows_and_writes_counts() -> None:
    matrix = [[8, 2, 0], [1, 3, 0], [0, 0, 0]]
    figure = draw_confusion(matrix, ["cat", "dog", "$never$"])
    axes = figure.axes[0]
    shade = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shade, [[0.8, 0.2, 0], [0.25, 0.75, 0], [0, 0, 0]])
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written == {(0, 0): "8", (0, 1): "2", (1, 0): "1", (1, 1): "3"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "$never$"]
    style.figure_bytes(figure, "png", dpi=40)


def test_confusion_of_many_classes_shows_the_most_confused() -> None:
    matrix = np.diag(np.full(100, 10))
    matrix[7, 93] = 5
    figure = draw_confusion(matrix, [f"class {i}" for i in range(100)])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 30
    assert {"class 7", "class 93"} <= set(names)
    assert "30 most confused of 100" in figure.axes[0].get_title(loc="left")
    assert not figure.axes[0].texts


def test_confusion_refuses_what_does_not_fit() -> None:
    with pytest.raises(FishnetError, match="does not match 2 classes"):
        draw_confusion(np.zeros((3, 3)), ["a", "b"])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_is_saved_the_same_every_time(tmp_path: Path, suffix: str) -> None:
    names = ["日本 \N{FISH}", "Ünï\udc80"]
    figures = [draw_confusion([[1, 0], [0, 1]], names) for _ in range(2)]
    files = [style.save_figure(f, tmp_path / str(i) / f"c{suffix}").read_bytes() for i, f in enumerate(figures)]
    assert files[0] == files[1]


def test_an_unknown_picture_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        style.save_figure(draw_confusion([[1]], ["a"]), tmp_path / "c.txt")


def test_every_term_of_the_loss_is_drawn_whatever_its_head(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = []
    for step in range(1, 5):
        for name in ("image_loss", "region_loss_objectness", "loss", "lr", "grad_norm"):
            rows.append((step, 0, "train", name, 1.0))
    drawn = lines(draw_curves(write_rows(tmp_path / "metrics.csv", rows), DISPLAY))
    assert {label for title, label in drawn if title == "Loss terms"} == {"image_loss", "region_loss_objectness"}


def test_gradient_norms_of_heads_are_no_terms_of_the_loss(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = []
    for step in range(1, 5):
        for name, value in {"image_loss": 1.0, "pixel_loss": 2.0, "loss": 3.0, "lr": 0.1, "grad_norm": 5.0}.items():
            rows.append((step, 0, "train", name, value))
        rows += [(step, 0, "train", "grad_norm_image", 0.5), (step, 0, "train", "grad_norm_pixel", 0.01)]
    rows.append((4, 0, "val", "top1", 0.5))
    figure = draw_curves(write_rows(tmp_path / "metrics.csv", rows), DISPLAY)
    drawn = lines(figure)
    assert {label for title, label in drawn if title == "Loss terms"} == {"image_loss", "pixel_loss"}
    title = "Gradient norm at the trunk by head"
    assert drawn[title, "image"] == ([1, 2, 3, 4], [0.5] * 4)
    assert drawn[title, "pixel"][1] == [0.01] * 4
    assert next(axes for axes in figure.axes if axes.get_title(loc="left") == title).get_yscale() == "log"
    assert len(figure.axes) == 5


def test_scores_that_are_no_fractions_are_not_drawn_in_percent(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "metrics.csv", [(step, 0, "val", "error", 0.5) for step in (1, 2)])
    assert lines(draw_curves(path, Display({"error": Score("error", curve=True)})))["Validation", "error"][1] == [
        0.5,
        0.5,
    ]
    shown = Display({"error": Score("error", curve=True)}, fractions=frozenset({"error"}))
    assert lines(draw_curves(path, shown))["Validation", "error"][1] == [50, 50]


def test_what_the_split_does_not_determine_is_not_drawn(tmp_path: Path) -> None:
    rows = [
        (1, 0, "val", "ap", -1.0),
        (2, 1, "val", "ap", 0.25),
        (1, 0, "val", "bias", -1.0),
        (2, 1, "val", "bias", 2.0),
    ]
    path = write_rows(tmp_path / "metrics.csv", rows)
    scores = {"ap": Score("AP", curve=True), "bias": Score("bias", curve=True)}
    alone = lines(draw_curves(path, Display({"ap": scores["ap"]}, fractions=frozenset({"ap"}))))
    np.testing.assert_array_equal(alone["Validation", "AP"][1], [math.nan, 25])
    both = lines(draw_curves(path, Display(scores, fractions=frozenset({"ap"}))))
    np.testing.assert_array_equal(both["Validation", "AP"][1], [math.nan, 0.25])
    assert both["Validation", "bias"][1] == [-1, 2]


def test_scores_with_one_title_are_all_drawn(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "metrics.csv", [(1, 0, "val", "near", 0.5), (1, 0, "val", "far", 0.25)])
    display = Display({name: Score("error", curve=True) for name in ("near", "far")})
    (axes,) = draw_curves(path, display).axes
    assert sorted(float(np.asarray(line.get_ydata())[0]) for line in axes.lines) == [0.25, 0.5]
