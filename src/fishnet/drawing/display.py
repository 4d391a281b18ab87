"""Description of how a report shows an evaluation; declared by evaluators, so reports are independent of tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from fishnet.errors import FishnetError

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
    """Metrics that determine the best epoch; the first available one is used. Larger is better."""
    fractions: frozenset[str] = frozenset()
    """Names of the values between 0 and 1 that are shown in percent: metrics, and columns of tables."""
    sections: Callable[[Mapping[str, object]], list[Section]] = _no_sections
    """Function from an evaluation (read from JSON, so any key may be missing) to the sections that show it."""

    def title(self, name: str) -> str:
        """Return the displayed name of a metric."""
        return self.scores[name].title if name in self.scores else name

    def is_detail(self, name: str) -> bool:
        """Return whether the headline and the table of epochs omit a metric."""
        return name in self.scores and self.scores[name].detail

    def primary_of(self, metrics: Collection[str]) -> str:
        """Return the name of the metric that determines the best epoch.

        Args:
            metrics: Names of the metrics of an evaluation.

        Raises:
            FishnetError: None of them does.
        """
        for name in self.primary:
            if name in metrics:
                return name
        raise FishnetError(f"an evaluation has none of {', '.join(self.primary)}, which decide on the best epoch")

    def text(self, name: str, value: float) -> str:
        """Return a metric as text: fractions in percent, others with four significant digits."""
        return f"{100 * value:.2f} %" if name in self.fractions and math.isfinite(value) else f"{value:.4g}"

    def order(self, names: Sequence[str]) -> list[str]:
        """Sort metrics by importance; undeclared ones come last."""
        return [name for name in self.scores if name in names] + [name for name in names if name not in self.scores]


Value = TypeVar("Value")


def unique_names(metrics: Mapping[str, Mapping[str, Value]]) -> dict[tuple[str, str], str]:
    """Return the names of the metrics of several heads in one evaluation, by (head, name).

    A metric keeps its name if no other head has one of that name; else the name of its head stands in front.
    """
    counts = Counter(name for own in metrics.values() for name in own)
    return {
        (head, name): name if counts[name] == 1 else f"{head}_{name}" for head, own in metrics.items() for name in own
    }


def combine(displays: Mapping[str, Display]) -> Display:
    """Return the display of a task that is composed of others.

    The evaluation of such a task has `metrics` named by `unique_names`, and the evaluation of each head under `heads`.

    Args:
        displays: Display of each head, by the name of the head, the most important first.
    """
    names = unique_names({head: display.scores for head, display in displays.items()})
    scores = {name: displays[head].scores[own] for (head, own), name in names.items()}

    def sections(evaluation: Mapping[str, object]) -> list[Section]:
        parts = evaluation.get("heads")
        if not isinstance(parts, Mapping):
            return []
        return [
            replace(section, title=f"{head}: {section.title}")
            for head, display in displays.items()
            for section in display.sections(parts.get(head) or {})
        ]

    return Display(
        scores,
        [names.get((head, own), own) for head, display in displays.items() for own in display.primary],
        frozenset(names.get((head, own), own) for head, display in displays.items() for own in display.fractions),
        sections,
    )
