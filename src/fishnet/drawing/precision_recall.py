"""Precision-recall curves of a detector, averaged over classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from fishnet.drawing import style


def draw_precision_recall(curves: Mapping[str, Mapping[str, list[float]]], metrics: Mapping[str, float]) -> Figure:
    """Draw a panel per kind (box, mask, keypoint) with a curve per IoU threshold.

    Args:
        curves: Precision at 101 recall values from 0 to 1, by kind and IoU threshold.
        metrics: Metrics by name; `<kind>_ap` is shown in the titles.
    """
    with style.styled():
        figure = style.new_figure(4.2 * max(1, len(curves)), 3.6)
        for place, (kind, by_overlap) in enumerate(curves.items()):
            axes = figure.add_subplot(1, len(curves), place + 1)
            for overlap, precision in by_overlap.items():
                if precision:
                    label = (
                        f"{'OKS' if kind == 'keypoint' else 'IoU'} {overlap}: {100 * float(np.mean(precision)):.1f} %"
                    )
                    axes.plot(np.linspace(0, 1, len(precision)), precision, label=label)
            average = metrics.get(f"{kind}_ap", -1)
            axes.set_title(f"{kind}: AP {100 * average:.1f} %" if average >= 0 else f"{kind}: no objects to evaluate")
            axes.set_xlabel("recall")
            axes.set_ylabel("precision, mean over classes")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
            if axes.lines:
                axes.legend(loc="lower left")
    return figure
