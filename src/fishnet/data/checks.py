"""Findings about a data set, and what decoding an image tells; what else is checked is up to each task."""

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
from typing import Any, Literal, NamedTuple

from PIL import Image
from tqdm import tqdm

from fishnet.data.images import explain, is_truncated, refuse_bomb, to_rgb

Severity = Literal["error", "note"]

_EXTENSIONS_OF = {"MPO": "JPEG"}  # a JPEG file with a second picture behind the first, as some phones write it


@dataclass(frozen=True)
class Problem:
    """One finding; an error should be mended, a note is only worth knowing."""

    kind: str
    path: str
    detail: str
    severity: Severity


@dataclass
class CheckReport:
    """What a check found; `kinds` gives severity and title of every kind of finding, in the order of the listing."""

    root: Path
    problems: list[Problem]
    summary: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, tuple[Severity, str]] = field(default_factory=dict)

    def add(self, kind: str, path: str, detail: str, severity: Severity | None = None) -> None:
        """Note a finding, by default of the severity of its kind."""
        self.problems.append(Problem(kind, path, detail, severity or self.kinds[kind][0]))

    @property
    def exit_code(self) -> int:
        """1 where there is an error, 0 where there are notes at most."""
        return int(any(problem.severity == "error" for problem in self.problems))

    def to_dict(self) -> dict[str, Any]:
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
            lines.append(f"{split or self.root}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
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
        lines.append(f"\n{errors} errors, {notes} notes in {self.root}" if errors else f"\nno problems in {self.root}")
        return "\n".join(lines)


class ImageFacts(NamedTuple):
    """What one image file turned out to be."""

    findings: list[tuple[str, str]]
    """Kind and detail of each."""
    digest: bytes
    """Hash of the RGB pixels, so that a copy in another format is found too; of the bytes where unreadable."""
    readable: bool


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow from warning of what the report says anyway (bombs, damaged EXIF); for all threads."""
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
    """Yield the facts of images in their order, behind a progress bar.

    Threads suffice, since decoding and hashing release the interpreter; they need no pickling and start at once.

    Args:
        jobs: What reads each image, and its file name; see `inspect_image`.
        total: Number of images.
        min_size: Smallest side in pixels that is not reported.
        workers: Threads.
        progress: Show a bar on a terminal.
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
    """Decode one image wholly and return what there is to say about it.

    Args:
        read: Returns the content; may raise OSError.
        name: File name; its extension is compared with the content.
        min_size: Smallest side in pixels that is not reported.
    """
    content = b""
    try:
        content = read()
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            findings = list(_traits(image, name, min_size))
            rgb = to_rgb(image)
    except FileNotFoundError:
        return ImageFacts([("unreadable", "there is no such file")], name.encode(), False)
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
    """Yield what the header of an opened image, not decoded yet, tells."""
    suffix = Path(name).suffix.lower()
    kind = _EXTENSIONS_OF.get(image.format or "", image.format)
    if Image.registered_extensions().get(suffix) != kind:
        yield "wrong extension", f"the content is {kind}"
    if min(image.size) < min_size:
        yield "small", f"{image.width}x{image.height}, below {min_size} pixels"
    if image.mode == "CMYK":
        yield "CMYK", ""
    # Pillow reads 16-bit colour into 8 bits; only the raw mode of its decoder tells
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith("I") or ";16" in raw_modes:
        yield "16-bit", ""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "animated", f"{getattr(image, 'n_frames', 2)} frames"
    if image.has_transparency_data:
        yield "alpha", ""
