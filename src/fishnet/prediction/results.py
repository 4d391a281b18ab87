"""results.json of predict: written line by line, so that memory does not grow with the number of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json, atomic_path, json_text

FORMAT_VERSION = 1
FILES = ("results", "video")
"""Keys of a video's entry that contain file names."""


class Results:
    """Entries of images, in results.jsonl while predict runs and in results.json at its end.

    results.jsonl can be read at any time, also after the process was killed.

    Args:
        folder: Output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.lines = folder, folder / "results.json", folder / "results.jsonl"
        self.remaining = folder / "remaining.txt"
        self.first: list[Json] = []
        """The first entries."""
        self.count = 0
        """Number of images with an entry."""
        self.bad: list[str] = []
        """Unreadable images."""
        self.videos: list[Json] = []
        """Entries of the videos."""
        self._stream: TextIO | None = None

    def refuse_earlier(self) -> None:
        """Raise UsageError if the folder already contains results."""
        what = "contains results already" if self.path.exists() else "contains the results of a predict that was killed"
        if self.path.exists() or self.lines.exists():
            raise UsageError(f"{self.folder} {what}: choose another --out or give --overwrite")

    def earlier_files(self) -> set[Path]:
        """Return the files that results.json lists; only these may be replaced or removed without asking."""
        try:
            document = json.loads(self.path.read_text("utf-8"))
            listed = [document["pictures"]]
            listed += [
                [clip[name] for name in ("results", "video") if name in clip] for clip in document.get("videos", [])
            ]
            relative = [Path(name) for names in listed if isinstance(names, list) for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return set()
        inside = [self.folder / name for name in relative if not name.is_absolute() and ".." not in name.parts]
        return {path for path in inside if path.is_file()}

    def start(self) -> None:
        """Create the folder and an empty results.jsonl, before any prediction."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stream = self.lines.open("w", encoding="utf-8")
        except OSError as error:
            raise FishnetError(
                f"cannot create the folder {self.folder}: {error.strerror}; choose another --out"
            ) from error

    def add(self, entry: Json) -> None:
        """Write the entry of an image."""
        assert self._stream is not None
        if len(self.first) < 10:
            self.first.append(entry)
        self.count += 1
        try:
            self._stream.write(json_text(entry, None) + "\n")
            self._stream.flush()
        except OSError as error:
            raise FishnetError(
                f"cannot write {self.lines}: {error.strerror}; free disk space or choose another --out"
            ) from error

    @property
    def is_empty(self) -> bool:
        """Whether there are no predictions yet."""
        return not self.count and not self.videos

    def finish(self, head: Json, pictures: list[Path], complete: bool) -> None:
        """Write results.json, and remove results.jsonl.

        Args:
            head: Values that precede the entries: task, model, classes.
            pictures: Files that were drawn.
            complete: Whether all inputs were predicted on.
        """
        tail: Json = {
            "videos": self.videos,
            "bad_images": self.bad,
            "pictures": [path.relative_to(self.folder).as_posix() for path in pictures],
        }
        if not self.videos:
            del tail["videos"]
        self.close()
        with atomic_path(self.path) as partial, partial.open("w", encoding="utf-8") as stream:
            begin = json_text({"format_version": FORMAT_VERSION, **head, "complete": complete})
            stream.write(begin.removesuffix("\n}") + ',\n "images": [')
            for place, line in enumerate(self._entries()):
                stream.write(f"{',' if place else ''}\n  {line}")
            stream.write("\n ],\n" if self.count else "],\n")
            stream.write(json_text(tail).removeprefix("{\n") + "\n")
        self.lines.unlink(missing_ok=True)
        if complete:
            self.remaining.unlink(missing_ok=True)

    def _entries(self) -> Iterator[str]:
        with self.lines.open(encoding="utf-8") as stream:
            for line in stream:
                yield line.rstrip("\n")

    def close(self) -> None:
        """Close results.jsonl."""
        if self._stream is not None:
            self._stream.close()

    def discard(self) -> None:
        """Remove results.jsonl if it is empty."""
        self.close()
        if self._stream is not None and self.is_empty:
            self.lines.unlink(missing_ok=True)
