"""metrics.csv: one row per value, without gaps or duplicates after kills and resumes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from fishnet.files import atomic_path

HEADER = ("step", "epoch", "split", "name", "value")


class MetricsFile:
    """A CSV file of `step,epoch,split,name,value`; every write is flushed to disk.

    Args:
        path: The file; it is created by the first write.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Append one row per value; floats keep their full precision."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(HEADER)
            writer.writerows((step, epoch, split, name, repr(float(value))) for name, value in values.items())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, str]]:
        """Return all complete rows; a line that was truncated by a kill is skipped."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [row for row in csv.DictReader(lines) if all(row.get(key) not in (None, "") for key in HEADER)]

    def by_epoch(self, split: str) -> dict[int, dict[str, float]]:
        """Return the metrics of a split by epoch and name."""
        found: dict[int, dict[str, float]] = {}
        for row in self.read():
            if row["split"] == split:
                found.setdefault(int(row["epoch"]), {})[row["name"]] = float(row["value"])
        return found

    def cut(self, step: int, validated: bool = True) -> None:
        """Remove the rows that a resumed run writes again: those after a step, and its validation if incomplete.

        Args:
            step: Number of optimizer steps of the checkpoint.
            validated: Whether the checkpoint was taken after the validation at this step.
        """
        rows = self.read()
        kept = [
            r
            for r in rows
            if int(r["step"]) < step or (int(r["step"]) == step and (validated or r["split"] == "train"))
        ]
        if not self.path.exists():
            return
        with atomic_path(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            writer.writerows([row[key] for key in HEADER] for row in kept)
