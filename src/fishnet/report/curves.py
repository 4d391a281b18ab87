"""Training curves of a run, drawn from its metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fishnet.drawing import style
from fishnet.drawing.display import Display
from fishnet.errors import FishnetError
from fishnet.metrics import MetricsFile

_FEW, _MOST = 25, 6
_NO_LOSS_TERMS = ("loss", "lr", "grad_norm")
"""Metrics of the training split that are not terms of the loss."""
_PULL = "grad_norm_"
"""Prefix of the gradient norms per head at the trunk."""


@dataclass
class Series:
    """One metric of a run: three lists of equal length, sorted by step; values may be NaN."""

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def read_metrics(path: Path) -> dict[tuple[str, str], Series]:
    """Read a long-form CSV (`step,epoch,split,name,value`) into a series per (split, name); empty if there is no file.

    Rows with invalid numbers are skipped; of several rows with the same (step, split, name) the last one is used.

    Raises:
        FishnetError: The file cannot be read.
    """
    points: dict[tuple[str, str], dict[int, tuple[int, float]]] = {}
    try:
        rows = MetricsFile(Path(path)).read()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FishnetError(f"cannot read the metrics file {path}: {error}") from error
    for row in rows:
        try:
            step, epoch, value = int(row["step"]), int(row["epoch"]), float(row["value"])
        except ValueError:
            continue
        points.setdefault((row["split"], row["name"]), {})[step] = (epoch, value)
    return {key: _series(found) for key, found in points.items()}


def smooth(values: list[float], share: float = 0.02) -> np.ndarray:
    """Return the centered moving average over a fraction `share` of the points, ignoring NaN and infinite values."""
    array = np.asarray(values, dtype=np.float64)
    window = np.ones(2 * int(len(array) * share / 2) + 1)
    finite = np.isfinite(array)
    count = np.convolve(finite, window, mode="same")
    total = np.convolve(np.where(finite, array, 0.0), window, mode="same")
    return np.divide(total, count, out=np.full(len(array), np.nan), where=count > 0.5)


def draw_curves(metrics_csv: Path, display: Display | None = None) -> Figure:
    """Plot losses (training losses smoothed), scores, learning rate, and the gradient norms per head at the trunk over
    optimizer steps.

    Metrics that are not in the file are omitted, so that runs of one epoch or without validation are supported.

    Args:
        metrics_csv: Metrics file of the run.
        display: Scores to draw and their titles; None draws the first validation metrics.

    Raises:
        FishnetError: The file cannot be read.
    """
    series, display = read_metrics(metrics_csv), display or Display()
    panels = _panels(series, display)
    columns = {4: 2, 5: 3}.get(len(panels), max(len(panels), 1))
    rows = -(-len(panels) // columns) or 1
    with style.styled():
        figure = style.new_figure(4.3 * columns if rows == 1 else 12.9, 3.1 * rows)
        if not panels:
            figure.text(0.5, 0.5, "No metrics yet", ha="center", va="center", color=style.MUTED)
        for place, draw in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            draw(axes)
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return figure


def _panels(series: dict[tuple[str, str], Series], display: Display) -> list[Callable[[Axes], None]]:
    """Return functions that draw the panels, for which there are metrics."""
    scores = {name: series["val", name] for name in _score_names(series, display) if ("val", name) in series}
    own = {n: found for (split, n), found in series.items() if split == "train" and n not in _NO_LOSS_TERMS}
    parts = {name: found for name, found in own.items() if not name.startswith(_PULL)}
    pulls = {name.removeprefix(_PULL): found for name, found in own.items() if name.startswith(_PULL)}
    rate = series.get(("train", "lr"))
    found: list[Callable[[Axes], None] | None] = [
        partial(_draw_loss, series=series) if {("train", "loss"), ("val", "loss")} & series.keys() else None,
        partial(_draw_scores, scores=scores, display=display) if scores else None,
        partial(_draw_lr, series=rate) if rate is not None else None,
        partial(_draw_parts, parts=parts) if parts else None,
        partial(_draw_pulls, pulls=pulls) if pulls else None,
    ]
    return [draw for draw in found if draw is not None]


def _series(points: dict[int, tuple[int, float]]) -> Series:
    steps = sorted(points)
    return Series(steps, [points[s][0] for s in steps], [points[s][1] for s in steps])


def _score_names(series: dict[tuple[str, str], Series], display: Display) -> list[str]:
    """Return the scores to draw; if none is declared, the first validation metrics that are not losses."""
    measured = [name for split, name in series if split == "val"]
    drawn = [name for name, score in display.scores.items() if score.curve and name in measured]
    return drawn or [name for name in measured if "loss" not in name][:_MOST]


def _draw_loss(axes: Axes, series: dict[tuple[str, str], Series]) -> None:
    axes.set_title("Loss")
    if train := series.get(("train", "loss")):
        if len(train.steps) > _FEW:
            axes.plot(train.steps, train.values, color=style.BLUE, alpha=0.2, linewidth=0.8)
        axes.plot(train.steps, smooth(train.values), color=style.BLUE, label="train", **_marks(train))
    if val := series.get(("val", "loss")):
        axes.plot(val.steps, val.values, color=style.VERMILION, label="val", **_marks(val))
    values = [v for key in (("train", "loss"), ("val", "loss")) if key in series for v in series[key].values]
    _limit(axes, values)
    axes.legend(loc="best")  # explicit, since the default warns for long runs


def _draw_scores(axes: Axes, scores: dict[str, Series], display: Display) -> None:
    axes.set_title("Validation")
    percent = display.fractions.issuperset(scores)
    for name, found in scores.items():
        values = np.asarray(found.values) * (100 if percent else 1)
        if name in display.fractions:
            values = np.where(values < 0, np.nan, values)  # -1: undefined on the split
        label = style.middle(display.title(name), 24)
        if np.isfinite(values).any():
            label += f" (best {np.nanmax(values):.2f}{' %' if percent else ''})"
        axes.plot(found.steps, values, label=label, **_marks(found))
    if percent:
        axes.set_ylabel("%")
    axes.legend(loc="best")


def _draw_parts(axes: Axes, parts: dict[str, Series]) -> None:
    axes.set_title("Loss terms")
    for name, found in parts.items():
        axes.plot(found.steps, smooth(found.values), label=name.removeprefix("loss_"), **_marks(found))
    _limit(axes, [value for found in parts.values() for value in found.values])
    axes.legend(loc="best")


def _draw_pulls(axes: Axes, pulls: dict[str, Series]) -> None:
    axes.set_title("Gradient norm at the trunk by head")
    for name, found in pulls.items():
        axes.plot(found.steps, smooth(found.values), label=name, **_marks(found))
    axes.set_yscale("log")
    axes.legend(loc="best")


def _draw_lr(axes: Axes, series: Series) -> None:
    axes.set_title("Learning rate")
    axes.plot(series.steps, series.values, color=style.GREEN, **_marks(series))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _marks(series: Series) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if len(series.steps) <= _FEW else {}


def _limit(axes: Axes, values: list[float]) -> None:
    """Limit the y axis so that the first losses or a spike do not flatten the curve; a note states the maximum."""
    finite = np.asarray([v for v in values if math.isfinite(v)])
    if len(finite) < 10:
        return
    low, high, top = finite.min(), np.quantile(finite, 0.95), finite.max()
    if top > high + 1.5 * (high - low):
        axes.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))
        axes.text(0.02, 0.98, f"▲ up to {top:.4g}", transform=axes.transAxes, va="top", color=style.MUTED)
