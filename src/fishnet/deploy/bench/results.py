"""Results of a benchmark, as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fishnet.deploy.bench.cases import Case
from fishnet.deploy.bench.peak import PEAK
from fishnet.deploy.bench.rounds import Row, peak_rate, turn_peaks
from fishnet.deploy.bench.statistics import fit_power, median, quantile, spread
from fishnet.environment import describe_environment
from fishnet.files import Json
from fishnet.models.precision import cpu_flags

FORMAT = 1
Sweep = Literal["size", "batch", "depth"]
AGAINST = {"size": "pixels", "batch": "images in a batch", "depth": "multiply-adds"}
"""Variable that time and memory are fitted against, by sweep."""
_EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
               "asimddp", "bf16", "i8mm", "sve")  # fmt: skip
_BACKWARD = 3
"""Multiply-adds of a training step relative to a forward pass: gradients of inputs and of weights add one each."""


@dataclass
class Results:
    """Rows and their baseline."""

    rows: list[Row] = field(default_factory=list)
    notes: dict[Case, str] = field(default_factory=dict)
    """Rows that were not measured, with the reason."""
    base: Mapping[tuple[int, int], Case] = field(default_factory=dict)
    """Baseline row of the ratios, by batch and size."""
    base_name: str | None = None
    sweep: Sweep | None = None
    threads: int = 1
    rounds: int = 0

    def to_json(self, complete: bool) -> Json:
        """Return the results as JSON values.

        Args:
            complete: Whether the measurement was not interrupted.
        """
        shown = [row for row in self.rows if row.case.model != PEAK]
        environment = describe_environment()
        environment["hardware"]["flags"] = [flag for flag in _EXTENSIONS if flag in cpu_flags()]
        return {
            "format_version": FORMAT,
            "complete": complete,
            "threads": self.threads,
            "rounds": self.rounds,
            "environment": environment,
            "peak": self._peaks(),
            "ratio_to": self.base_name,
            "rows": [self._row(row) for row in shown]
            + [{**case.to_json(), "label": case.label, "failed": reason} for case, reason in self.notes.items()],
            "fits": self._fits(shown),
        }

    def _peaks(self) -> Json:
        rows = [row for row in self.rows if row.case.model == PEAK]
        found: Json = {}
        for precision in dict.fromkeys(row.case.precision for row in rows):
            if (best := peak_rate(rows, precision)) is not None:
                found[precision] = {"multiply_adds_per_second": best[0], "where": best[1]}
        return found

    def _row(self, row: Row) -> Json:
        case = row.case
        entry: Json = {**case.to_json(), "label": case.label, "parameters": row.params, "multiply_adds": row.macs}
        entry |= {
            "memory": row.memory,
            "compile_seconds": row.compile_seconds,
            "failed": row.failed,
            "remark": row.remark,
        }
        if not row.turns:
            return {**entry, "failed": row.failed or "interrupted before its first turn"}
        seconds = median(row.turns)
        entry |= {
            "rounds": len(row.turns),
            "passes": len(row.seconds),
            "seconds": seconds,
            "turn_seconds": row.turns,
            "spread": spread(row.turns),
            "images_per_second": case.batch / seconds,
            "p50": quantile(row.seconds, 0.5),
            "p95": quantile(row.seconds, 0.95),
        }
        if row.macs is not None:
            work = row.macs * case.batch * (_BACKWARD if case.train else 1)
            rate = work / seconds
            best = peak_rate([one for one in self.rows if one.case.model == PEAK], case.precision)
            entry |= {"multiply_adds_per_second": rate, "share_of_peak": rate / best[0] if best else None}
            peaks = turn_peaks(self.rows, case)
            shares = [work / own / most for own, most in zip(row.turns, peaks, strict=False)]
            entry["share_of_turn_peak"] = median(shares) if shares else None
        if (ratios := self._ratios(row)) is not None:
            entry |= {"ratio": median(ratios), "ratio_quartiles": [quantile(ratios, 0.25), quantile(ratios, 0.75)]}
        return entry

    def _ratios(self, row: Row) -> list[float] | None:
        """Return the speed of a row relative to the baseline in every round."""
        base = self.base.get((row.case.batch, row.case.size))
        turns = next((one.turns for one in self.rows if one.case == base), [])
        ratios = [theirs / own for theirs, own in zip(turns, row.turns, strict=False)]
        return ratios or None

    def _fits(self, rows: Sequence[Row]) -> list[Json]:
        """Return the exponents of time and memory as a function of the swept variable."""
        if self.sweep is None:
            return []
        lines: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            if row.turns:
                model = "" if self.sweep == "depth" else row.case.label
                lines.setdefault((model, row.case.runtime, row.case.precision), []).append(row)
        found = []
        for (model, runtime, precision), line in lines.items():
            work = [float(self._work(row)) for row in line]
            time = fit_power(work, [median(row.turns) for row in line])
            memory = fit_power(work, [float(row.memory or 0) for row in line])
            found.append(
                {
                    "model": model,
                    "runtime": runtime,
                    "precision": precision,
                    "against": AGAINST[self.sweep],
                    "points": len(line),
                    "time": time and time._asdict(),
                    "memory": memory and memory._asdict(),
                }
            )
        return found

    def _work(self, row: Row) -> int:
        case = row.case
        return {"size": case.size * case.size, "batch": case.batch, "depth": row.macs or 0}[self.sweep or "size"]


HEAD = (
    "model",
    "runtime",
    "precision",
    "batch",
    "size",
    "images/s",
    "spread",
    "p50 ms",
    "p95 ms",
    "memory MB",
    "GMAC/s",
)


def table(content: Json) -> str:
    """Return results as a text table, preceded by the machine and followed by fits.

    Args:
        content: Result of `Results.to_json`.
    """
    lines = [describe_machine(content), ""]
    lines += aligned(*cells(content))
    for row in content["rows"]:
        if said := row["failed"] or row["remark"]:
            what = f"{row['label']}, {row['runtime']}, {row['precision']}, batch {row['batch']}, size {row['size']}"
            lines.append(f"{what}: {said}")
    for precision, found in content["peak"].items():
        rate = found["multiply_adds_per_second"] / 1e9
        lines.append(f"measured peak in {precision}: {rate:.1f} G multiply-adds/s ({found['where']})")
    lines += [describe_fit(fit) for fit in content["fits"]]
    if not content["complete"]:
        lines.append("interrupted: results are from the completed rounds")
    return "\n".join(lines)


def describe_machine(content: Json) -> str:
    """Return processor, its instruction sets, threads and versions in a line."""
    hardware, versions = content["environment"]["hardware"], content["environment"]["versions"]
    flags = " ".join(hardware["flags"]) or "no vector extensions"
    gpus = "".join(f", {gpu}" for gpu in hardware["gpus"])
    return f"{hardware['processor']} ({flags}){gpus}, {content['threads']} threads, torch {versions['torch']}"


def describe_fit(fit: Json) -> str:
    """Return a description of a fitted exponent."""
    name = ", ".join(filter(None, (fit["model"], fit["runtime"], fit["precision"])))
    parts = [
        f"{what} ~ ({fit['against']})^{fit[what]['exponent']:.2f} (R2 {fit[what]['fit']:.3f})"
        for what in ("time", "memory")
        if fit[what]
    ]
    return f"{name}: {'; '.join(parts) or 'too few points to fit'}"


def cells(content: Json) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the cells of a table of all measured rows."""
    rows = [row for row in content["rows"] if "seconds" in row]
    more = {
        "of peak": [_percent(row.get("share_of_peak")) for row in rows],
        "of peak in turn": [_percent(row.get("share_of_turn_peak")) for row in rows],
        f"x {content['ratio_to']}": [_ratio(row) for row in rows],
        "compiled in": ["" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f} s" for row in rows],
    }
    columns = {name: values for name, values in more.items() if any(values)}
    found = []
    for place, row in enumerate(rows):
        rate = row.get("multiply_adds_per_second")
        found.append(
            [
                row["label"],
                row["runtime"] + (" (training)" if row["train"] else ""),
                row["precision"],
                str(row["batch"]),
                str(row["size"]),
                f"{row['images_per_second']:.2f}",
                f"{100 * row['spread']:.1f} %",
                f"{1000 * row['p50']:.1f}",
                f"{1000 * row['p95']:.1f}",
                "" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}",
                "" if rate is None else f"{rate / 1e9:.1f}",
                *(values[place] for values in columns.values()),
            ]
        )
    return [*HEAD, *columns], found


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _ratio(row: Json) -> str:
    if "ratio" not in row:
        return ""
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 3) -> list[str]:
    """Return the lines of a text table, the first columns aligned to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (head, *rows)
    ]
