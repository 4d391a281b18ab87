"""Plot of the results: a bar per row, and lines for sweeps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fishnet.deploy.bench.results import describe_machine
from fishnet.drawing.style import INK, MUTED, PALETTE, middle, new_figure, styled
from fishnet.files import Json

_AXES = {"pixels": "size", "images in a batch": "batch", "multiply-adds": "multiply_adds"}


def draw(content: Json) -> Figure:
    """Plot the results.

    Args:
        content: Result of `Results.to_json`.
    """
    rows = [row for row in content["rows"] if "seconds" in row]
    with styled():
        if content["fits"]:
            figure = new_figure(10, 4.5)
            left, right = figure.subplots(1, 2)
            _lines(left, content, rows, "seconds", "seconds per pass")
            _lines(right, content, rows, "memory", "peak memory, bytes")
            left.legend()
        else:
            figure = new_figure(9, 1.4 + 0.3 * max(1, len(rows)))
            _bars(figure.subplots(), rows)
        figure.suptitle(middle(describe_machine(content), 130), fontsize=8, color=MUTED, x=0.01, ha="left")
    return figure


def _bars(axes: Axes, rows: list[Json]) -> None:
    names = [
        f"{middle(row['label'], 40)}, {row['runtime']}, {row['precision']}, {row['batch']} x {row['size']}"
        for row in rows
    ]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    colors = [PALETTE[runtimes.index(row["runtime"]) % len(PALETTE)] for row in rows]
    speeds = [row["images_per_second"] for row in rows]
    errors = [row["images_per_second"] * row["spread"] for row in rows]
    places = list(range(len(rows)))
    axes.barh(places, speeds, xerr=errors, color=colors, ecolor=INK)
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("images per second; error bars are half the interquartile range")
    for place, row in enumerate(rows):
        ratio = f", {row['ratio']:.2f}x" if "ratio" in row else ""
        digits = 0 if speeds[place] >= 100 else 1
        axes.annotate(
            f"{speeds[place]:,.{digits}f}{ratio}", (speeds[place] + errors[place], place), (4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.margins(x=0.15)
    axes.set_xlim(left=0)


def _lines(axes: Axes, content: Json, rows: list[Json], value: str, title: str) -> None:
    for place, fit in enumerate(content["fits"]):
        name = _AXES[fit["against"]]
        mine = [
            row
            for row in rows
            if (row["runtime"], row["precision"]) == (fit["runtime"], fit["precision"])
            and fit["model"] in ("", row["label"])
        ]
        points = sorted((row[name] ** 2 if name == "size" else row[name], row[value]) for row in mine)
        law = fit["time" if value == "seconds" else "memory"]
        exponent = f", exponent {law['exponent']:.2f}" if law else ""
        label = ", ".join(filter(None, (fit["model"], fit["runtime"], fit["precision"]))) + exponent
        axes.plot(
            [x for x, _ in points], [y for _, y in points], "o-", color=PALETTE[place % len(PALETTE)], label=label
        )
    axes.set(xscale="log", yscale="log", xlabel=content["fits"][0]["against"], ylabel=title)
