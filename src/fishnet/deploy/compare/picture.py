"""Plot and HTML page of a comparison."""

from __future__ import annotations

import math
import os
from html import escape
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fishnet.deploy.compare.results import cells
from fishnet.drawing.style import PALETTE, data_uri, figure_bytes, middle, new_figure, styled
from fishnet.files import Json

_CSS = """body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; color: #1f2933;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #d9dee4; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } img { max-width: 100%; } p { color: #5d6874; overflow-wrap: anywhere; }"""

_NOTE = (
    "Mean ± standard deviation over seeds, for the best epoch on the validation split; for speed, half the "
    "interquartile range."
)


def draw(content: Json) -> Figure:
    """Plot the primary metric of a comparison over parameters, multiply-adds and speed.

    Args:
        content: Result of `document`.
    """
    shown = [entry for entry in content["models"] if entry["runs"]]
    panels = [("parameters", "parameters"), ("multiply_adds", f"multiply-adds, {content['size']}x{content['size']}")]
    if any(_x(entry, "speed") for entry in shown):
        panels.append(("speed", "images per second"))
    with styled():
        figure = new_figure(4.2 * len(panels), 4.2)
        for place, (name, title) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), place)
            _panel(axes, content, shown, name)
            axes.set(xlabel=title, ylabel=content["titles"].get(content["primary"], "") if place == 1 else "")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _panel(axes: Axes, content: Json, shown: list[Json], name: str) -> None:
    factor = 100 if content["primary"] in content["fractions"] else 1
    for place, entry in enumerate(shown):
        found, x = entry["metrics"].get(content["primary"]), _x(entry, name)
        if found is None or x is None:
            continue
        color, speed = PALETTE[place % len(PALETTE)], entry["speed"] or {}
        high, wide = factor * (found["std"] or 0.0), x * speed["spread"] if name == "speed" else None
        label = middle(entry["model"], 60)
        axes.errorbar([x], [factor * found["mean"]], fmt="o", color=color, label=label, capsize=3, yerr=high, xerr=wide)
        axes.plot([x] * len(found["values"]), [factor * one for one in found["values"]], ".", color=color, alpha=0.4)
    if factor != 1:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} %"))
    _scale_log(axes, [x for entry in shown if (x := _x(entry, name)) is not None])


def _scale_log(axes: Axes, values: list[float]) -> None:
    """Make the horizontal axis logarithmic around some values, with round numbers such as 500 k or 2 M at its ticks."""
    axes.set_xscale("log")
    if values:
        low, high = min(values) / 1.4, max(values) * 1.4
        axes.set_xlim(low, high)
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        axes.xaxis.set_major_locator(MaxNLocator(4) if decades < 0.7 else LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Return a number with at most four significant digits and k, M or G for thousands, millions or billions."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _x(entry: Json, name: str) -> float | None:
    if name == "speed":
        return (entry["speed"] or {}).get("images_per_second")
    return entry[name]


def page(content: Json, out: Path) -> str:
    """Return a comparison as a self-contained HTML page with links to the reports of the runs.

    Args:
        content: Result of `document`.
        out: Folder of the page.
    """
    head, rows = cells(content)
    lines = [
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8"><title>fishnet compare</title>',
        f"<style>{_CSS}</style></head><body>", f"<h1>{escape(content['task'])}: models side by side</h1>",
        f"<p>{escape(_settings(content))}</p>", '<div class="scroll">' + _html_table(head, rows) + "</div>",
        f"<p>{_NOTE}</p>",
    ]  # fmt: skip
    if any(entry["runs"] for entry in content["models"]):
        uri = data_uri(figure_bytes(draw(content), "png", 130), "image/png")
        lines.append(f'<img alt="Metric against parameters, multiply-adds and speed" src="{uri}">')
    lines += ["<h2>Runs</h2>", "<ul>", *(_entry(run, out) for run in content["runs"]), "</ul>", "</body></html>"]
    return "\n".join(lines) + "\n"


def _settings(content: Json) -> str:
    settings = [f"{name} {value}" for name, value in content["settings"].items()]
    hardware = content["environment"]["hardware"]["processor"]
    parts = [f"data {content['data']}", f"recipe {content['recipe']}" if content["recipe"] else "", *settings]
    return " · ".join([*filter(None, parts), f"seeds {', '.join(map(str, content['seeds']))}", hardware])


def _entry(run: Json, out: Path) -> str:
    name = escape(f"{run['model']} seed {run['seed']}")
    if run["failed"]:
        return f"<li>{name}: failed: {escape(run['failed'])}</li>"
    link = Path(os.path.relpath(run["folder"], out), "report.html").as_posix()
    return f'<li><a href="{escape(link)}">{name}</a></li>'


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    def line(tag: str, values: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"

    return "\n".join(["<table>", line("th", head), *(line("td", row) for row in rows), "</table>"])
