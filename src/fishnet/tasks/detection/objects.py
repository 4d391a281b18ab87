"""Figure of the number of objects per class and of their sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from fishnet.data.detection.coco import CocoFile
from fishnet.drawing import style

_MOST = 40
_EDGES = (32, 96)
"""Boundaries in pixels between COCO's small, medium and large objects."""


def draw_objects(files: Mapping[str, CocoFile]) -> Figure:
    """Draw the number of objects per class (at most the 40 most frequent classes) and a histogram of object sizes.

    Args:
        files: Annotation files by split, with equal classes.
    """
    first = next(iter(files.values()))
    counts = {
        split: dict(zip(file.classes, file.class_counts().tolist(), strict=True)) for split, file in files.items()
    }
    total = {name: sum(count.get(name, 0) for count in counts.values()) for name in first.classes}
    shown = sorted(total, key=lambda name: -total[name])[:_MOST]
    with style.styled():
        figure = style.new_figure(10, max(3.2, 0.9 + 0.2 * len(shown)))
        bars, sides = figure.subplots(1, 2, width_ratios=(3, 2))
        left = np.zeros(len(shown))
        for split, count in counts.items():
            widths = np.array([count.get(name, 0) for name in shown])
            bars.barh([style.middle(name, 24) for name in shown], widths, left=left, label=split)
            left += widths
        bars.invert_yaxis()
        more = f", {_MOST} of {len(total)}" if len(total) > _MOST else ""
        bars.set_title(f"objects per class{more}")
        bars.legend(loc="lower right")
        edges = np.geomspace(4, 2048, 19)
        for split, file in files.items():
            real = file.boxes[~file.crowd]
            if len(real):
                share = np.full(len(real), 1 / len(real))
                sides.hist(
                    np.sqrt(real[:, 2:].prod(1)), bins=edges, weights=share, histtype="step", label=split, lw=1.8
                )
        for edge in _EDGES:
            sides.axvline(edge, color=style.MUTED, lw=0.8, ls=":")
        sides.set_xscale("log", base=2)
        sides.set_title("size of objects")
        sides.set_xlabel("square root of the box area in pixels (dotted: 32, 96)")
        sides.set_ylabel("fraction of objects")
        sides.legend()
    return figure
