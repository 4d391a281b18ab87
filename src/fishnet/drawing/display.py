"""What a report shows of an evaluation; evaluators declare it, and reports know no task by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # evaluators are imported for training, which draws nothing until its end
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """How one figure of an evaluation is shown."""

    title: str
    """Name for people."""
    curve: bool = False
    """Whether it is drawn over the epochs."""
    detail: bool = False
    """Whether headlines and tables of epochs leave it out."""


@dataclass(frozen=True)
class Table:
    """Rows of values under a head; numbers are formatted by the report, None is a dash."""

    head: list[str]
    """Titles of the columns."""
    names: list[str]
    """Names of the columns' figures, which decide how numbers are written."""
    rows: list[list[Any]]


@dataclass(frozen=True)
class Section:
    """A part of a report: a table, a picture (matplotlib), or a note in words."""

    title: str
    content: Table | Figure | str


def _no_sections(evaluation: Mapping[str, Any]) -> list[Section]:
    return []


@dataclass(frozen=True)
class Display:
    """What a report shows of the evaluations of a task."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    """Figures by name, the most important first; others are shown under their own names."""
    primary: Sequence[str] = ()
    """Figures that pick the best epoch, the first that there is."""
    sections: Callable[[Mapping[str, Any]], list[Section]] = _no_sections
    """Evaluation as read from JSON -> sections; may be damaged, so nothing in it is certain to be there."""

    def title(self, name: str) -> str:
        """Return the name of a figure for people."""
        return self.scores[name].title if name in self.scores else name

    def is_detail(self, name: str) -> bool:
        """Whether headlines and tables of epochs leave a figure out."""
        return name in self.scores and self.scores[name].detail

    def order(self, names: Sequence[str]) -> list[str]:
        """Return figures in the order of their weight, those that nobody declared last."""
        return [name for name in self.scores if name in names] + [name for name in names if name not in self.scores]
