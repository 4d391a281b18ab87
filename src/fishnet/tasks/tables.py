"""Tables of metrics per class, as text."""

from __future__ import annotations

from collections.abc import Sequence

from fishnet.files import Json

ROWS = 20
"""Maximum number of classes in a table."""


def class_table(rows: Sequence[Json], names: list[str], measure: str, weight: str) -> list[str]:
    """Return a table with a line per class; of more than 20 classes only the worst by `measure`, ties by `weight`.

    Args:
        rows: `class` and metrics by name; None if the data does not determine a metric.
        names: Metrics to show.
        measure: Metric that determines the worst classes.
        weight: Count that determines the most frequent classes.
    """
    lines = []
    if len(rows) > ROWS:
        lines.append(f"the {ROWS} worst of {len(rows)} classes by {measure.replace('_', ' ')}:")
        known = [row for row in rows if row.get(measure) is not None]
        rows = sorted(known, key=lambda row: (row[measure], -row[weight]))[:ROWS]
    width = min(40, max(len("class"), *(len(row["class"]) for row in rows))) if rows else 5
    widths = {name: max(11, len(name) + 2) for name in names}
    lines.append("  " + "class".ljust(width) + "".join(f"{n.replace('_', ' '):>{widths[n]}}" for n in names))
    for row in rows:
        cells = "".join(f"{_cell(row.get(name)):>{widths[name]}}" for name in names)
        lines.append("  " + row["class"][:width].ljust(width) + cells)
    return lines


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"
