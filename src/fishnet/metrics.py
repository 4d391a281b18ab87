"""metrics.csv: one row per figure, in long form, that survives kills without gaps or duplicates."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from fishnet.files import atomic_path

HEADER = ("step", "epoch", "split", "name", "value")


class MetricsFile:
    """A CSV of `step,epoch,split,name,value` that is appended to; every write reaches the disk before it returns.

    Args:
        path: The file; made with its header at the first write.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Append one row per value; floats are written so that they read back as the same number."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(HEADER)
            writer.writerows((step, epoch, split, name, repr(float(value))) for name, value in values.items())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, str]]:
        """Return all whole rows; a line that a kill cut off is left out."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [row for row in csv.DictReader(lines) if all(row.get(key) not in (None, "") for key in HEADER)]

    def cut(self, step: int, validated: bool = True) -> None:
        """Drop the rows that a resumed run writes again: those after a step, and that step's validation if undone.

        Args:
            step: Optimizer steps that the checkpoint holds.
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
