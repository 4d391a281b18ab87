"""Names of output files."""

from __future__ import annotations

from pathlib import Path


class UniqueStems:
    """Unique names for output files: the stems of the input files, with a number appended if a stem is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, file: str) -> str:
        """Return the stem of a file, or STEM_2, STEM_3, ... if it is taken, ignoring case."""
        stem = Path(file).stem
        name, number = stem, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name.lower())
        return name
