"""Report of a run as one self-contained HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import cast

import yaml
from matplotlib.figure import Figure
from PIL import Image

from fishnet.cards import read_card
from fishnet.drawing import style
from fishnet.drawing.display import Display, Section, Table
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_path
from fishnet.report import insides
from fishnet.report.curves import Series, draw_curves, read_metrics
from fishnet.runs import RunFolder
from fishnet.tasks import get_task

Metrics = Mapping[tuple[str, str], Series]
_MOST_ROWS = 1000
_MOST_BYTES = 600_000
_CURVES = "Metrics over optimizer steps: training losses are smoothed, scores are from the validation split."

_CSS = """
:root { color-scheme: light; --ink: #1f2933; --muted: #5d6874; --rule: #d9dee4; --tint: #f5f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p.lead, .note { color: var(--muted); margin: .2rem 0 1rem; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { flex: 1 1 8rem; background: var(--tint); border-radius: .5rem; padding: .6rem .9rem; }
.cards b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.cards span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; max-height: 32rem; overflow-y: auto; border: 1px solid var(--rule); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { position: sticky; top: 0; background: var(--tint); font-weight: 600; }
th.text, td.text { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.best td { background: #e6f2ea; }
img { max-width: 100%; height: auto; }
pre { background: var(--tint); padding: .8rem; border-radius: .4rem; overflow-x: auto; font-size: .85rem; margin: 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  th { position: static; }
  details > *:not(summary) { display: block; }
  tr, img, .cards li { break-inside: avoid; }
}
"""


def write_report(run: RunFolder, display: Display | None = None) -> Path:
    """Write report.html into a run folder from the files of the folder, and return its path.

    The file contains its style and pictures, and all text from the run is escaped. Missing or unreadable files are
    omitted, with a note if a file is damaged.

    Args:
        run: Run folder.
        display: How the evaluation is shown; None uses the display of the model's task.

    Raises:
        FishnetError: The folder does not exist, or the report cannot be written.
    """
    if not run.path.is_dir():
        raise FishnetError(f"the run folder {run.path} does not exist")
    metrics = read_metrics(run.metrics_csv)
    config = _read_config(run.config_yaml)
    evaluation, note = _read_json(run.evaluation_json())
    environment, environment_note = _read_json(run.environment_json)
    name, task = run.path.resolve().name, _task(run)
    display = display or _display_of(task)
    named = config.get("best")
    best = _best_epoch(metrics, evaluation, display, named if isinstance(named, str) else None)
    sections = [
        _headline(name, task, config, _best_scores(metrics, evaluation, best, display), metrics, best, run.timing_csv),
        _section("Curves", _figure(draw_curves(run.metrics_csv, display), "Loss, scores and learning rate"), _CURVES),
        _section("Epochs", _epochs_table(metrics, best, display)),
        _section("Evaluation", note),
        *(_section(part.title, _content(part, display), part.note) for part in display.sections(evaluation)),
        _section("Predictions", _picture(run.predictions_png, "Example predictions"), display.predictions),
        _section("Inside the network", _picture(run.insides_png, "Feature maps by stage"), insides.CAPTION),
        _section("Augmented training batch", _picture(run.train_batch_png, "Augmented images"), display.train_batch),
        _section("Skipped images", _bad_images(run.bad_images_txt)),
        _section("Settings", _text_file(run.config_yaml)),
        _section("Environment", environment_note + _environment(environment)),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: fishnet report</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )
    with atomic_path(run.report_html) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return run.report_html


def _section(title: str, content: str, note: str = "") -> str:
    """Return a section with an explanatory note; empty if there is no content."""
    lead = f"{_note(note)}\n" if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}{content}\n</section>" if content else ""


def _headline(
    name: str,
    task: str,
    config: Mapping[str, object],
    scores: list[tuple[str, str]],
    metrics: Metrics,
    best: int | None,
    timing_csv: Path,
) -> str:
    facts = [task, config.get("model"), config.get("data") and f"on {config['data']}"]
    lead = " · ".join(escape(style.printable(str(fact))) for fact in facts if fact)
    cards = [(value, f"val {title}") for title, value in scores]
    seconds = _seconds(timing_csv)
    epochs = {e for (split, _), series in metrics.items() if split in ("train", "val") for e in series.epochs}
    if epochs:
        planned = config.get("epochs")
        cards.append((f"{max(epochs)}{f' / {planned}' if planned else ''}", "epochs"))
    if best is not None:
        cards.append((str(best), "best epoch"))
    if seconds > 0:
        cards.append((_duration(seconds), "training and validation"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in cards)
    return f'<header>\n<h1>{escape(name)}</h1>\n<p class="lead">{lead}</p>\n<ul class="cards">{items}</ul>\n</header>'


def _task(run: RunFolder) -> str:
    """Return the task of the model file; empty if there is no readable model file."""
    try:
        card = read_card(run.model_file) if run.model_file.is_file() else None
    except FishnetError:
        return ""
    return card.task if card else ""


def _display_of(task: str) -> Display:
    """Return the display of a task; the default display if the task is unknown."""
    try:
        return get_task(task).display
    except UsageError:
        return Display()


def _content(part: Section, display: Display) -> str:
    if isinstance(part.content, str):
        return _note(part.content)
    if isinstance(part.content, Table):
        table = part.content
        text = {place for place in range(len(table.head)) if any(isinstance(row[place], str) for row in table.rows)}
        body = [
            [_cell(name, value, display) for name, value in zip(table.names, row, strict=True)] for row in table.rows
        ]
        return _table(table.head, body, text=text)
    return _figure(part.content, part.title)


def _best_scores(
    metrics: Metrics, evaluation: Mapping[str, object], best: int | None, display: Display
) -> list[tuple[str, str]]:
    """Return title and value, as text, of the metrics of the best epoch, the most important first."""
    measured = evaluation.get("metrics")
    found: dict[str, object] = measured if isinstance(measured, dict) else {}
    if not isinstance(measured, dict):
        for (split, name), series in metrics.items():
            if split == "val" and best in series.epochs:
                found[name] = series.values[series.epochs.index(best)]
    names = [name for name in display.order(list(found)) if not display.is_detail(name)]
    return [(display.title(name), _cell(name, found[name], display)) for name in names]


def _best_epoch(
    metrics: Metrics, evaluation: Mapping[str, object], display: Display, named: str | None = None
) -> int | None:
    """Return the epoch of the evaluation, otherwise that of the best value of the named or the primary metric."""
    epoch = evaluation.get("epoch")
    if isinstance(epoch, int):
        return int(epoch)
    for name in [*([named] if named else []), *display.primary]:
        best: tuple[float, int] | None = None
        if series := metrics.get(("val", name)):
            for value, number in zip(series.values, series.epochs, strict=True):
                if not math.isnan(value) and display.is_better(name, value, None if best is None else best[0]):
                    best = value, number
        if best is not None:
            return best[1]
    return None


def _epochs_table(metrics: Metrics, best: int | None, display: Display) -> str:
    """Return a table with a row per epoch: mean training loss, validation metrics and last learning rate."""
    measured = [name for split, name in metrics if split == "val"]
    names = [name for name in display.order(measured) if not display.is_detail(name)]
    columns: list[tuple[str, str, dict[int, float]]] = []
    if train := metrics.get(("train", "loss")):
        means = {
            e: _mean(v for f, v in zip(train.epochs, train.values, strict=True) if f == e) for e in set(train.epochs)
        }
        columns.append(("", "train loss", means))
    for name in names:
        series = metrics["val", name]
        columns.append((name, f"val {display.title(name)}", dict(zip(series.epochs, series.values, strict=True))))
    if rate := metrics.get(("train", "lr")):
        columns.append(("", "learning rate", dict(zip(rate.epochs, rate.values, strict=True))))
    epochs = sorted({epoch for _, _, column in columns for epoch in column})
    if not epochs:
        return ""
    rows = [[str(epoch), *(_cell(name, column.get(epoch), display) for name, _, column in columns)] for epoch in epochs]
    marked = {epochs.index(best)} if best in epochs else set()
    return _table(["epoch", *(title for _, title, _ in columns)], rows, marked=marked)


def _figure(figure: Figure, alt: str) -> str:
    uri = style.data_uri(style.figure_bytes(figure, "png", dpi=130), "image/png")
    return f'<img alt="{escape(alt)}" src="{uri}">'


def _picture(path: Path, alt: str) -> str:
    """Return a PNG of the run folder as an image element, converted to JPEG if it is large."""
    if not path.is_file():
        return ""
    try:
        content = path.read_bytes()
        uri = style.data_uri(content, "image/png")
        with Image.open(path) as image:
            image.load()
            if len(content) > _MOST_BYTES:
                uri = style.jpeg_uri(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return _note(f"{path.name} cannot be read: {error}")
    return f'<img alt="{escape(alt)}" src="{uri}">'


def _bad_images(path: Path) -> str:
    names = [line for line in _read_text(path).splitlines() if line.strip()]
    if not names:
        return ""
    shown = "\n".join(escape(name) for name in names[:_MOST_ROWS])
    more = f"\n… and {len(names) - _MOST_ROWS} more, see {escape(path.name)}" if len(names) > _MOST_ROWS else ""
    note = _note(f"Images that could not be read and were skipped: {len(names)}")
    return f"{note}\n<pre>{shown}{more}</pre>"


def _text_file(path: Path) -> str:
    text = _read_text(path)
    return f"<details open><summary>{escape(path.name)}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _environment(environment: Mapping[str, object]) -> str:
    rows = [[style.printable(cell) for cell in row] for row in _flat(environment)]
    return _table(["", ""], rows, text={0, 1}) if rows else ""


def _flat(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted key, text) of each leaf; lists of plain values become one line."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            rows.append((prefix + key, " ".join(map(str, value))))
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return [(key, text) for key, text in rows if text and text not in ("null", "[]")]


def _table(head: Sequence[str], rows: list[list[str]], text: Iterable[int] = (), marked: Iterable[int] = ()) -> str:
    """Return a scrollable table; columns in `text` are left-aligned, rows in `marked` are highlighted."""
    left, best = set(text), set(marked)

    def cells(tag: str, row: Sequence[str]) -> str:
        classes = [' class="text"' if place in left else "" for place in range(len(row))]
        return "".join(f"<{tag}{c}>{escape(cell)}</{tag}>" for c, cell in zip(classes, row, strict=True))

    marks = [' class="best"' if number in best else "" for number in range(len(rows))]
    shown = zip(marks[:_MOST_ROWS], rows[:_MOST_ROWS], strict=True)
    body = "\n".join(f"<tr{mark}>{cells('td', row)}</tr>" for mark, row in shown)
    more = _note(f"and {len(rows) - _MOST_ROWS} more rows") if len(rows) > _MOST_ROWS else ""
    header = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>\n{body}\n</tbody></table></div>{more}'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _cell(name: str, value: object, display: Display) -> str:
    """Return a value as text: numbers in the form that the display declares for their name."""
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return display.text(name, cast(float | None, value)) if number else style.printable(str(value))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _seconds(timing_csv: Path) -> float:
    return sum(v for (_, name), series in read_metrics(timing_csv).items() if name == "seconds" for v in series.values)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _read_config(path: Path) -> dict[str, object]:
    try:
        found = yaml.safe_load(_read_text(path))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> tuple[dict[str, object], str]:
    """Return the content of a JSON file, and an HTML note if it is damaged."""
    text = _read_text(path)
    if not text:
        return {}, ""
    try:
        found = json.loads(text)
    except ValueError as error:
        return {}, _note(f"{path.name} is damaged: {error}")
    return (found, "") if isinstance(found, dict) else ({}, _note(f"{path.name} is damaged: not an object"))
