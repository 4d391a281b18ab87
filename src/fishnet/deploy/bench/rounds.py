"""Measurement of rows in turns (A B A B), so that other load on the machine affects all of them equally."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from fishnet.deploy.bench.cases import Case
from fishnet.deploy.bench.peak import PEAK
from fishnet.deploy.bench.process import Process, RowFailed
from fishnet.deploy.bench.statistics import median
from fishnet.deploy.bench.worker import Order

_TURN_SECONDS, _MOST_PASSES = 0.25, 50


@dataclass
class Row:
    """Measurements of a case."""

    case: Case
    turns: list[float] = field(default_factory=list)
    """Median seconds of a pass in every turn."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of all passes."""
    params: int | None = None
    macs: int | None = None
    """Multiply-adds for one image."""
    memory: int | None = None
    """Peak memory in bytes while the network runs, minus the memory before it was built."""
    compile_seconds: float | None = None
    remark: str | None = None
    """What the runtime could not do, such as fusing."""
    shapes: dict[str, list[float]] = field(default_factory=dict)
    """For peaks only: multiply-adds per second in every turn, by shape."""
    failed: str | None = None
    """Reason why it could not be measured."""


@dataclass(frozen=True)
class Measurement:
    """Measurement of rows in turns."""

    folder: str
    """Folder of converted models."""
    threads: int
    rounds: int
    calibration: str | None
    say: Callable[[str], object]
    """Called with a line for every progress message."""

    def measure(self, cases: Sequence[Case], together: bool = False) -> Iterator[Row]:
        """Measure cases; the rows of a group are yielded immediately and filled as the iteration continues.

        After an interruption, the rows therefore contain all measurements so far.

        Args:
            cases: Cases. Those of the same batch and size are measured in turns, together with the peaks.
            together: Whether all rows are measured in turns, regardless of batch and size.
        """
        keys = {case: (0, 0) if together else (case.batch, case.size) for case in cases}
        for _, group in groupby(
            sorted(cases, key=lambda case: list(keys.values()).index(keys[case])), keys.__getitem__
        ):
            rows = [Row(case) for case in group]
            yield from rows
            self._take_turns(rows)

    def _take_turns(self, rows: Sequence[Row]) -> None:
        taking: list[_Turns] = []
        try:
            for row in rows:
                self.say(f"starting {describe(row.case)}")
                one = _Turns(row, Order(row.case, self.threads, self.folder, self.calibration))
                taking.append(one)
                one.open()
                if row.failed:
                    self.say(f"  failed: {row.failed}")
            for number in range(self.rounds):
                self.say(f"round {number + 1} of {self.rounds}")
                for one in taking:
                    one.take()
        finally:
            for one in taking:
                one.process.close()


class _Turns:
    """A row and its process."""

    def __init__(self, row: Row, order: Order) -> None:
        self.row, self.process, self.passes = row, Process(order), 1
        self._macs: list[int] = []
        self._shapes: list[str] = []

    def open(self) -> None:
        """Build the model and warm up."""
        try:
            found = self.process.ask(do="open")
        except RowFailed as error:
            self._fail(str(error))
            return
        if self.row.case.model == PEAK:
            self._macs, self._shapes = found["macs"], found["shapes"]
            self.row.shapes = {name: [] for name in self._shapes}
            return
        self.row.params, self.row.macs = found["params"], found["macs"]
        self.row.memory, self.row.compile_seconds = found["memory"], found["compile_seconds"]
        self.row.remark = found["remark"]
        self.passes = max(1, min(_MOST_PASSES, math.ceil(_TURN_SECONDS / max(found["warm_seconds"], 1e-6))))

    def take(self) -> None:
        """Measure one turn."""
        if self.row.failed:
            return
        try:
            seconds: list[float] = self.process.ask(do="run", passes=self.passes)["seconds"]
        except RowFailed as error:
            self._fail(str(error))
            return
        if self._shapes:
            for name, macs, taken in zip(self._shapes, self._macs, seconds, strict=True):
                self.row.shapes[name].append(macs / taken)
            return
        self.row.turns.append(median(seconds))
        self.row.seconds += seconds

    def _fail(self, reason: str) -> None:
        self.row.failed = reason
        self.process.close()


def peak_rate(rows: Sequence[Row], precision: str) -> tuple[float, str] | None:
    """Return the maximum of multiply-adds per second over all turns at a precision, and its shape and runtime.

    The maximum is used instead of the median, since other load can only reduce the throughput. None if nothing was
    measured.

    Args:
        rows: Rows of peaks in any runtime.
        precision: Precision of the multiply-adds.
    """
    rates = [
        (max(found), f"{name}, {row.case.runtime}")
        for row in rows
        for name, found in row.shapes.items()
        if row.case.precision == precision and found
    ]
    return max(rates, default=None)


def turn_peaks(rows: Sequence[Row], case: Case) -> list[float]:
    """Return the maximum of multiply-adds per second over all shapes in every turn, at the precision of a case.

    Args:
        rows: Rows of peaks in any runtime, and others.
        case: Case; the peaks are those that were measured in turns with it.
    """
    same = (case.batch, case.size, case.precision)
    own = [
        row for row in rows if row.case.model == PEAK and (row.case.batch, row.case.size, row.case.precision) == same
    ]
    return [max(rates) for rates in zip(*(found for row in own for found in row.shapes.values()), strict=False)]


def describe(case: Case) -> str:
    """Return a short description of a case."""
    if case.model == PEAK:
        return f"peak throughput with {case.runtime} in {case.precision}"
    return f"{case.label}: {case.runtime}, {case.precision}, batch {case.batch}, {case.size}x{case.size}"
