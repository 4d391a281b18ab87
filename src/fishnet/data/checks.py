"""Reports of data set checks, and the check of single images that all tasks share."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from PIL import Image
from tqdm import tqdm

from fishnet.data.images import MISSING, explain, is_truncated, refuse_bomb, to_rgb
from fishnet.errors import counted

Severity = Literal["error", "note"]

_EXTENSIONS_OF = {"MPO": "JPEG"}  # a JPEG file with a second image appended, as written by some phones


@dataclass(frozen=True)
class Problem:
    """One finding; errors should be fixed, notes are for information."""

    kind: str
    path: str
    detail: str
    severity: Severity


class Summary(TypedDict, total=False):
    """Counts by split, such as the number of images."""

    splits: dict[str, dict[str, int]]
    pixels: dict[str, dict[str, int]]
    """Pixels of each class, by split."""


@dataclass
class CheckReport:
    """Findings of a check; `kinds` maps each kind of finding to severity and title, in the order of the listing."""

    root: Path
    problems: list[Problem]
    summary: Summary = field(default_factory=Summary)
    kinds: dict[str, tuple[Severity, str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """Further lines of the listing, such as a table; they follow the counts."""

    def add(self, kind: str, path: str, detail: str, severity: Severity | None = None) -> None:
        """Add a finding; its severity defaults to that of its kind."""
        self.problems.append(Problem(kind, path, detail, severity or self.kinds[kind][0]))

    @property
    def exit_code(self) -> int:
        """1 if there is an error, else 0."""
        return int(any(problem.severity == "error" for problem in self.problems))

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values, for JSON."""
        return {
            "format_version": 1,
            "directory": str(self.root),
            "summary": self.summary,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def describe(self, limit: int = 5) -> str:
        """Return a listing grouped by kind, errors first, with the first `limit` paths of each."""
        lines = []
        for split, counts in self.summary.get("splits", {}).items():
            lines.append(f"{split or self.root}: " + ", ".join(counted(n, name) for name, n in counts.items()))
        lines += self.lines
        groups: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[problem.kind].append(problem)
        for kind in (kind for kind in self.kinds if kind in groups):
            severity, title = self.kinds[kind]
            found = groups[kind]
            lines.append(f"\n{severity}: {title}: {len(found)}")
            lines += ["  " + ": ".join(text for text in (p.path, p.detail) if text) for p in found[:limit]]
            if len(found) > limit:
                lines.append(f"  ... and {len(found) - limit} more")
        errors = sum(problem.severity == "error" for problem in self.problems)
        notes = len(self.problems) - errors
        found_all = f"{counted(errors, 'errors')}, {counted(notes, 'notes')} in {self.root}"
        lines.append(f"\n{found_all}" if errors else f"\nno problems in {self.root}")
        return "\n".join(lines)


class ImageFacts(NamedTuple):
    """Result of inspecting one image file."""

    findings: list[tuple[str, str]]
    """(kind, detail) of each finding."""
    digest: bytes
    """Hash of the RGB pixels, equal for copies in other formats; hash of the bytes if unreadable."""
    readable: bool


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress warnings of Pillow about problems that the report contains (bombs, damaged EXIF), in all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def inspect_images(
    jobs: Iterator[tuple[Callable[[], bytes], str]],
    total: int,
    min_size: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Iterator[ImageFacts]:
    """Inspect images in parallel and yield the results in order, with a progress bar.

    Threads are sufficient, since decoding and hashing release the GIL; they start faster than processes and need no
    pickling.

    Args:
        jobs: (function that reads the image, file name) of each image; see `inspect_image`.
        total: Number of images.
        min_size: Images whose shorter side is below this number of pixels are reported.
        workers: Number of threads.
        progress: Show a progress bar on a terminal.
    """
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=total, unit="image", disable=None if progress else True, leave=False) as bar,
    ):
        while chunk := list(islice(jobs, 64 * max(1, workers))):
            for facts in pool.map(lambda job: inspect_image(job[0], job[1], min_size), chunk):
                bar.update()
                yield facts


def inspect_image(read: Callable[[], bytes], name: str, min_size: int = 0) -> ImageFacts:
    """Decode one image completely and report its problems.

    Args:
        read: Function that returns the content of the file; may raise OSError.
        name: File name; its extension is compared with the content.
        min_size: The image is reported if its shorter side is below this number of pixels.
    """
    content = b""
    try:
        content = read()
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            findings = list(_traits(image, name, min_size))
            rgb = to_rgb(image)
    except FileNotFoundError:
        return ImageFacts([("unreadable", MISSING)], name.encode(), False)
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        kind = "bomb" if bomb else "truncated" if content and is_truncated(error) else "unreadable"
        return ImageFacts([(kind, explain(error, content))], _hash(content or name.encode()), False)
    return ImageFacts(findings, _hash(str(rgb.size).encode(), rgb.tobytes()), True)


def _hash(*parts: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def _traits(image: Image.Image, name: str, min_size: int) -> Iterator[tuple[str, str]]:
    """Yield findings from the header of an opened image that is not decoded yet."""
    suffix = Path(name).suffix.lower()
    kind = _EXTENSIONS_OF.get(image.format or "", image.format)
    if Image.registered_extensions().get(suffix) != kind:
        yield "wrong extension", f"the content is {kind}"
    if min(image.size) < min_size:
        yield "small", f"{image.width}x{image.height}, below {min_size} pixels"
    if image.mode == "CMYK":
        yield "CMYK", ""
    # Pillow reduces 16-bit color to 8 bits; only the raw mode of its decoder shows the original depth
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith("I") or ";16" in raw_modes:
        yield "16-bit", ""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "animated", f"{getattr(image, 'n_frames', 2)} frames"
    if image.has_transparency_data:
        yield "alpha", ""
