"""Cases of a benchmark: models x batch x size x precision x runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Self

from fishnet.deploy.bench.peak import PEAK
from fishnet.deploy.bench.runtimes import RUNTIMES, check_runtime
from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.models.specs import check_spec, parse_spec

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    """Model as given on the command line, or a run folder."""
    batch: int
    size: int
    """Height and width of the images in pixels."""
    precision: str
    runtime: str
    train: bool = False
    """Whether training steps are measured, instead of forward passes."""
    device: str = "cpu"

    @property
    def path(self) -> str:
        """Model, runtime and precision, in the syntax of `--ratio-to`."""
        return f"{self.model}@{self.runtime}/{self.precision}"

    @property
    def label(self) -> str:
        """Display name of the model."""
        return self.model if self.model == PEAK or Path(self.model).is_dir() else parse_spec(self.model, "MODEL").label

    def to_json(self) -> Json:
        """Return the case as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Json) -> Self:
        """Return a case from JSON values."""
        return cls(**content)


@dataclass(frozen=True)
class Plan:
    """Values of every dimension; all combinations are measured."""

    models: Sequence[str]
    """MODEL, or MODEL@RUNTIME or MODEL@RUNTIME/PRECISION to measure a model only in these."""
    batch: Sequence[int] = (1,)
    size: Sequence[int] = (224,)
    precision: Sequence[str] = ("fp32",)
    runtime: Sequence[str] = ("eager",)
    train: bool = False
    device: str = "cpu"

    def cases(self) -> list[Case]:
        """Return the rows, except unsupported combinations of runtime and precision.

        Raises:
            UsageError: An unknown name, or no row remains.
        """
        found = list(dict.fromkeys(self._cases()))
        if not found:
            step = "training steps" if self.train else "passes"
            raise UsageError(
                f"no runtime of {', '.join(self.runtime)} has {step} in {', '.join(self.precision)} on {self.device}"
            )
        return found

    def _cases(self) -> Iterator[Case]:
        check_numbers("--batch-size", self.batch)
        check_numbers("--size", self.size)
        for batch, size, typed in product(self.batch, self.size, self.models):
            model, runtime, precision = _parsed(typed)
            if not Path(model).is_dir():
                check_spec(parse_spec(model, "MODEL"))
            runtimes = [runtime] if runtime else self.runtime
            for one, kind in product(runtimes, [precision] if precision else self.precision):
                check_runtime(one)
                if kind not in PRECISIONS:
                    raise UsageError(f"unknown precision {kind!r}; precisions are {', '.join(PRECISIONS)}")
                case = Case(model, batch, size, kind, one, self.train, self.device)
                if RUNTIMES[one].has(case.precision, case.train, case.device):
                    yield case


def _parsed(named: str) -> tuple[str, str, str]:
    """Return model, runtime and precision of MODEL@RUNTIME/PRECISION, empty if not given; a folder may have an @."""
    if "@" not in named or Path(named).is_dir():
        return named, "", ""
    model, _, rest = named.rpartition("@")
    runtime, _, precision = rest.partition("/")
    return model, runtime, precision


def with_peaks(cases: Sequence[Case], plain: str = "channels_last") -> list[Case]:
    """Return cases and those that measure the peak throughput, for every precision, batch and size among them.

    Peaks are measured in PyTorch, and in the runtimes whose kernels the cases use.

    Args:
        cases: Rows of models.
        plain: Runtime that is always measured, if it supports the precision.
    """
    found: dict[Case, None] = {}
    for case in cases:
        for name in dict.fromkeys([plain, RUNTIMES[case.runtime].peak or case.runtime]):
            if RUNTIMES[name].has(case.precision, False, case.device):
                found[replace(case, model=PEAK, runtime=name, train=False)] = None
    return [*cases, *found]


def check_numbers(flag: str, values: Sequence[int]) -> None:
    """Raise UsageError unless there are numbers, all of at least 1."""
    if not values or min(values) < 1:
        raise UsageError(f"{flag} must be at least 1, not {', '.join(map(str, values)) or 'empty'}")


def find_base(cases: Sequence[Case], named: str) -> dict[tuple[int, int], Case]:
    """Return the baseline row of the ratios, by batch and size.

    Args:
        cases: All rows.
        named: MODEL, MODEL@RUNTIME or MODEL@RUNTIME/PRECISION.

    Raises:
        UsageError: No row has this name, or several rows of the same batch and size have it.
    """
    model, runtime, precision = _parsed(named)
    found: dict[tuple[int, int], Case] = {}
    for case in cases:
        wanted = replace(case, model=model, runtime=runtime or case.runtime, precision=precision or case.precision)
        if case == wanted:
            place = case.batch, case.size
            if place in found:
                raise UsageError(
                    f"--ratio-to {named} matches {found[place].path} and {case.path}; give one of them in full"
                )
            found[place] = case
    if not found:
        known = ", ".join(dict.fromkeys(case.path for case in cases))
        raise UsageError(f"--ratio-to {named} is not a row; rows are {known}")
    return found
