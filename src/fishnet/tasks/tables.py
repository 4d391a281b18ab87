"""Tables of figures per class, as text."""

from __future__ import annotations

from collections.abc import Sequence

from fishnet.files import Json

ROWS = 20
"""Most classes of a table."""


def class_table(rows: Sequence[Json], names: list[str], measure: str, weight: str) -> list[str]:
    """Return a table with a line per class; of more than 20 classes the worst by `measure`, of equal ones the largest.

    Args:
        rows: `class` and figures by name; None where the data cannot tell.
        names: Figures to show.
        measure: Figure that says which are the worst.
        weight: Figure that says how much a class weighs.
    """
    lines = []
    if len(rows) > ROWS:
        lines.append(f"the {ROWS} worst of {len(rows)} classes by {measure.replace('_', ' ')}:")
        judged = [row for row in rows if row.get(measure) is not None]
        rows = sorted(judged, key=lambda row: (row[measure], -row[weight]))[:ROWS]
    width = min(40, max(len("class"), *(len(row["class"]) for row in rows))) if rows else 5
    lines.append("  " + "class".ljust(width) + "".join(f"{name.replace('_', ' '):>11}" for name in names))
    for row in rows:
        cells = "".join(f"{_cell(row.get(name)):>11}" for name in names)
        lines.append("  " + row["class"][:width].ljust(width) + cells)
    return lines


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"
