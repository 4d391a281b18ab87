"""Figure of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from fishnet.drawing import style
from fishnet.errors import FishnetError

_WITH_COUNTS = 20
_WITH_NAMES = 40
_MOST_CONFUSED = 30


def draw_confusion(matrix: np.ndarray | Sequence[Sequence[float]], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are true classes, columns predicted classes, shading is the fraction of the row.

    Counts are written for up to 20 classes. Of more than 40 classes only the 30 most confused are drawn (by false
    negatives plus false positives), and the title states this.

    Args:
        matrix: Number of images (classes, classes) by true and predicted class.
        classes: Class names by index.

    Raises:
        FishnetError: The matrix is not square with one row per class.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)) or not len(classes):
        raise FishnetError(f"a confusion matrix of shape {counts.shape} does not match {len(classes)} classes")
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    title = "Confusion"
    chosen = np.arange(len(classes))
    if len(classes) > _WITH_NAMES:
        chosen = _most_confused(counts)
        title = f"Confusion of the {len(chosen)} most confused of {len(classes)} classes"
    names = [style.middle(classes[int(i)], 22) for i in chosen]
    share, counts = share[np.ix_(chosen, chosen)], counts[np.ix_(chosen, chosen)]
    side = max(3.8, 0.3 * len(chosen) + 1.8)
    with style.styled():
        figure = style.new_figure(side + 0.7, side)
        axes = figure.add_subplot()
        # the square-root scale makes rare confusions visible
        image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        _label(axes, names)
        axes.set_title(title)
        if len(chosen) <= _WITH_COUNTS:
            _write_counts(axes, counts, share)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
        bar.set_label("fraction of the true class")
        bar.outline.set_visible(False)
    return figure


def _most_confused(counts: np.ndarray) -> np.ndarray:
    wrong = counts - np.diag(np.diag(counts))
    worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_MOST_CONFUSED]
    return np.sort(worst)


def _label(axes: Axes, names: list[str]) -> None:
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=8, parse_math=False)
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_counts(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.3 else style.INK
        axes.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", fontsize=7, color=color)
