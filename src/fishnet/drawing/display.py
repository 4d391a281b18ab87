"""Declarations of how reports present an evaluation, so that reports are independent of tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from fishnet.errors import FishnetError

if TYPE_CHECKING:  # evaluators are imported by training, which should not import matplotlib
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """Presentation of one metric of an evaluation."""

    title: str
    """Displayed name."""
    curve: bool = False
    """Whether it is plotted over the epochs."""
    detail: bool = False
    """Whether the headline and the table of epochs omit it."""
    smaller_is_better: bool = False
    """Whether smaller values are better, as those of a loss."""


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
    note: str = ""
    """Explanatory note."""


def _no_sections(evaluation: Mapping[str, object]) -> list[Section]:
    return []


@dataclass(frozen=True)
class Display:
    """Presentation of the evaluations of a task."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    """Metrics by name, the most important first; others are shown under their own names."""
    primary: Sequence[str] = ()
    """Metrics that determine the best epoch; the first available one is used."""
    fractions: frozenset[str] = frozenset()
    """Names of the values between 0 and 1 that are shown in percent: metrics, and columns of tables."""
    sections: Callable[[Mapping[str, object]], list[Section]] = _no_sections
    """Function from an evaluation (read from JSON, so any key may be missing) to the sections that show it."""
    predictions: str = "Images of the validation split with predictions of the best epoch."
    """Caption of the picture of predictions."""
    train_batch: str = "First training batch as the network saw it, with its targets."
    """Caption of the picture of a training batch."""

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
            FishnetError: There is no such metric.
        """
        for name in self.primary:
            if name in metrics:
                return name
        raise FishnetError(f"an evaluation has none of {', '.join(self.primary)}, which select the best epoch")

    def is_better(self, name: str, value: float, best: float | None) -> bool:
        """Return whether a metric is better than its best value so far; any number is better than NaN."""
        if best is None or math.isnan(best):
            return best is None or not math.isnan(value)
        smaller = name in self.scores and self.scores[name].smaller_is_better
        return value < best if smaller else value > best

    def text(self, name: str, value: float | None) -> str:
        """Return a metric, or a value of a table, as text.

        Fractions are shown in percent, integers in full, other numbers with four significant digits. Undefined
        metrics (None, or a fraction of -1) are a dash.
        """
        fraction = name in self.fractions
        if value is None or (fraction and value < 0):
            return "–"
        if fraction and math.isfinite(value):
            return f"{100 * value:.2f} %"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

    def order(self, names: Sequence[str]) -> list[str]:
        """Sort metrics by importance; undeclared ones come last."""
        return [name for name in self.scores if name in names] + [name for name in names if name not in self.scores]


Value = TypeVar("Value")


def unique_names(
    metrics: Mapping[str, Mapping[str, Value]], displays: Mapping[str, Display]
) -> dict[tuple[str, str], str]:
    """Return the names of the metrics of several heads in one evaluation, by (head, name).

    A metric keeps its name if no other head computes or declares one of the same name; otherwise it is prefixed by the
    name of its head. Declared metrics are included, so that the name of a metric does not depend on which metrics the
    other heads compute.

    Args:
        metrics: Metrics by name, by the name of the head.
        displays: Display of each head; `combine(displays)` shows the metrics under their new names.
    """
    heads = {**dict.fromkeys(displays), **dict.fromkeys(metrics)}
    known = {head: {*metrics.get(head, ()), *(displays[head].scores if head in displays else ())} for head in heads}
    counts = Counter(name for names in known.values() for name in names)
    return {
        (head, name): name if counts[name] == 1 else f"{head}_{name}" for head, own in metrics.items() for name in own
    }


def combine(displays: Mapping[str, Display]) -> Display:
    """Return the display of a task that is composed of others.

    The evaluation of such a task has `metrics` named by `unique_names`, and the evaluation of each head under `heads`.

    Args:
        displays: Display of each head, by the name of the head, the most important first.
    """
    names = unique_names({head: display.scores for head, display in displays.items()}, displays)
    scores = {name: _titled(displays[head].scores[own], head, name != own) for (head, own), name in names.items()}
    primary = [names.get((head, own), own) for head, display in displays.items() for own in display.primary]
    declared = [(head, own) for head, display in displays.items() for own in display.fractions]
    fractions = {names[key] for key in declared if key in names} | {f"{head}_{own}" for head, own in declared}

    def sections(evaluation: Mapping[str, object]) -> list[Section]:
        parts = evaluation.get("heads")
        found = parts if isinstance(parts, Mapping) else {}
        return [
            _of_head(section, head)
            for head, display in displays.items()
            if isinstance(found.get(head), Mapping)
            for section in display.sections(found[head])
        ]

    return Display(scores, primary, frozenset(fractions), sections)


def _titled(score: Score, head: str, collides: bool) -> Score:
    return replace(score, title=f"{head} {score.title}") if collides else score


def _of_head(section: Section, head: str) -> Section:
    """Return the section of a head; its title and the columns of its tables are prefixed by the head."""
    content = section.content
    if isinstance(content, Table):
        content = replace(content, names=[f"{head}_{name}" for name in content.names])
    return Section(f"{head}: {section.title}", content, section.note)
