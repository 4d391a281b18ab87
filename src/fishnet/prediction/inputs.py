"""Inputs of `fishnet predict`: files, folders, patterns, and paths on standard input."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError, UsageError, counted

STANDARD_INPUT = "-"
"""Input that means a list of paths on standard input."""
VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".mts", ".m2ts"}
)
"""Extensions of video files, in lower case."""


UNREADABLE = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)
"""Extensions of image formats that are not supported, in lower case."""


@dataclass
class Inputs:
    """Files to predict on."""

    files: list[Path] = field(default_factory=list)
    """Images, without duplicates."""
    videos: list[Path] = field(default_factory=list)
    """Videos, without duplicates."""
    standard_input: bool = False
    """Whether standard input lists further images."""
    skipped: list[Path] = field(default_factory=list)
    """Images in folders and patterns that cannot be read: formats without a decoder, and broken links."""


def find_inputs(inputs: Sequence[str | Path], leave_out: Path | None = None) -> Inputs:
    """Return the images and videos of files, folders and patterns in order, without duplicates.

    A file that is named explicitly is a video if it has the extension of one, otherwise an image. Folders contribute
    visible files with an image extension, patterns also those with a video extension; files in `leave_out` are skipped.
    `-` means paths of images on standard input.

    Raises:
        FishnetError: An input matches no usable file.
    """
    images: dict[Path, None] = {}
    videos: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    hidden_below = None if leave_out is None else leave_out.absolute()
    if not inputs:
        raise UsageError("no input is given; name images, folders, quoted patterns or videos, or - for a list of paths")
    texts = [str(one) for one in inputs]
    for text in texts:
        path = Path(text)
        if text == STANDARD_INPUT and not path.exists():
            continue
        if path.is_file():
            (videos if is_video(path) else images)[path] = None
            continue
        if path.is_dir():
            matches = sorted(path.rglob("*"))
        else:
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207  # takes absolute patterns
        seen = [match for match in matches if _is_visible(match, path) and hidden_below not in match.absolute().parents]
        skipped |= dict.fromkeys(match for match in matches if _is_unreadable(match, path))
        photos = [match for match in seen if match.suffix.lower() in IMAGE_EXTENSIONS]
        clips = [] if path.is_dir() else [match for match in seen if is_video(match)]
        if not photos and not clips:
            raise FishnetError(_nothing_found(text, path, matches))
        images.update(dict.fromkeys(photos))
        videos.update(dict.fromkeys(clips))
    from_list = STANDARD_INPUT in texts and not Path(STANDARD_INPUT).exists()
    return Inputs(list(images), list(videos), from_list, list(skipped))


def is_video(path: Path) -> bool:
    """Return whether a file has the extension of a video."""
    return path.suffix.lower() in VIDEO_EXTENSIONS


def _is_unreadable(path: Path, base: Path) -> bool:
    """Return whether a visible path is an image that cannot be read."""
    suffix = path.suffix.lower()
    return _is_visible(path, base, exists=False) and (
        suffix in UNREADABLE or (suffix in IMAGE_EXTENSIONS and path.is_symlink() and not path.exists())
    )


def describe_skipped(skipped: Sequence[Path]) -> str:
    """Return in one line which images are skipped, and what to do."""
    shown = ", ".join(f"{path} (broken link)" if path.is_symlink() else str(path) for path in skipped[:5])
    formats = any(path.suffix.lower() in UNREADABLE for path in skipped)
    advice = "; convert formats such as HEIC to JPEG or PNG" if formats else ""
    return f"skipped {counted(len(skipped), 'file')}: {shown}{', ...' * (len(skipped) > 5)}{advice}"


def _is_visible(path: Path, base: Path, exists: bool = True) -> bool:
    below = path.relative_to(base).parts if path.is_relative_to(base) else path.parts[-1:]
    return (path.is_file() or not exists) and not any(part.startswith(".") for part in below)


def _nothing_found(text: str, path: Path, matches: Sequence[Path]) -> str:
    endings = ", ".join(sorted(IMAGE_EXTENSIONS))
    if path.is_dir():
        clip = next((match for match in matches if is_video(match)), None)
        more = "" if clip is None else f"; name videos themselves, such as {clip} or '{path}/*{clip.suffix}'"
        if unreadable := [match for match in matches if _is_unreadable(match, path)]:
            more += f"; {describe_skipped(unreadable)}"
        return f"the folder {text} contains no images (files that end in {endings}){more}"
    if matches:
        return f"the pattern {text} matches no images (files that end in {endings})"
    if glob.has_magic(text):
        return f"the pattern {text} matches nothing"
    return f"{text} does not exist"


def listed_paths() -> Iterator[Path]:
    """Yield the paths on standard input, one per line, as soon as a line is complete; empty lines are skipped."""
    for line in _lines():
        if text := line.strip("\r\n"):
            yield Path(text)


def has_whole_list() -> bool:
    """Return whether standard input is a file, which can be read without waiting for another program."""
    try:
        return stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # no standard input, or one without a file descriptor
        return False


def _lines() -> Iterator[str]:
    """Yield the lines of standard input.

    They are read from the file descriptor: a thread that waits in Python's buffer would block the end of the program.
    """
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        yield from sys.stdin or ()
        return
    begun = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, begun = (begun + chunk).split(b"\n")
        yield from map(os.fsdecode, lines)
    yield os.fsdecode(begun)
