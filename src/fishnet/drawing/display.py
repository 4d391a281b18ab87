"""Description of how a report shows an evaluation; declared by evaluators, so reports are independent of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # evaluators are imported for training, which should not import matplotlib
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """How one metric of an evaluation is shown."""

    title: str
    """Displayed name."""
    curve: bool = False
    """Whether it is plotted over the epochs."""
    detail: bool = False
    """Whether the headline and the table of epochs omit it."""


@dataclass(frozen=True)
class Table:
    """Table of values; the report formats numbers and shows None as a dash."""

    head: list[str]
    """Column titles."""
    names: list[str]
    """Metric name of each column, which determines the number format."""
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """Section of a report: a table, a matplotlib figure, or a note."""

    title: str
    content: Table | Figure | str


def _no_sections(evaluation: Mapping[str, object]) -> list[Section]:
    return []


@dataclass(frozen=True)
class Display:
    """How a report shows the evaluations of a task."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    """Metrics by name, the most important first; others are shown under their own names."""
    primary: Sequence[str] = ()
    """Metrics that determine the best epoch; the first available one is used."""
    sections: Callable[[Mapping[str, object]], list[Section]] = _no_sections
    """Function from an evaluation (read from JSON, so any key may be missing) to the sections that show it."""

    def title(self, name: str) -> str:
        """Return the displayed name of a metric."""
        return self.scores[name].title if name in self.scores else name

    def is_detail(self, name: str) -> bool:
        """Return whether the headline and the table of epochs omit a metric."""
        return name in self.scores and self.scores[name].detail

    def order(self, names: Sequence[str]) -> list[str]:
        """Sort metrics by importance; undeclared ones come last."""
        return [name for name in self.scores if name in names] + [name for name in names if name not in self.scores]
