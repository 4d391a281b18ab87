"""Atomic writing of files: a crash, a full disk or a kill never leaves a partial file under the final name."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fishnet.errors import FishnetError, UsageError

# The writers of torch and safetensors report a failed write with their own exceptions instead of OSError.
_WRITE_FAILURES = ("no space left", "file write failed", "pytorchstreamwriter", "i/o error", "inline_container")

Json = dict[str, Any]
"""Plain values, as JSON files contain them."""


def texts(given: str | Path | Iterable[str | Path] | None) -> list[str]:
    """Return paths as text; one path counts as a list of one, None as an empty list."""
    if given is None:
        return []
    return [str(given)] if isinstance(given, str | os.PathLike) else [str(one) for one in given]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is flushed to disk and renamed to `path` at the end of the block.

    The temporary file has the same suffix, since writers may choose the format by it; a missing folder is created. If
    the block raises, the temporary file is removed and an older `path` is kept.

    Raises:
        FishnetError: The file cannot be written, such as on a full disk.
    """
    target = Path(path)
    partial = target.with_name(f".{target.stem}-{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # some writers make files that only their owner can read
        yield partial
        partial.chmod(mode)
        _flush(partial)
        partial.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        # An error about another file, such as a missing input, is not about writing.
        if _concerns(error, target):
            no_folder = isinstance(error, FileExistsError | NotADirectoryError)
            reason = f"{target.parent} is not a folder" if no_folder else error.strerror or str(error)
            raise _cannot_write(target, reason) from error
        raise
    except (RuntimeError, SafetensorError) as error:
        if any(sign in str(error).lower() for sign in _WRITE_FAILURES):
            raise _cannot_write(target, str(error).splitlines()[0]) from error
        raise
    finally:
        # Does not exist after the rename; after a failure, including Ctrl-C, it is the partial file.
        with suppress(OSError):
            partial.unlink()


def sweep_partials(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; no other process may be writing there."""
    for left in folder.glob(f".*-{'[0-9a-f]' * 8}.part*"):
        left.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` through `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def json_text(content: object, indent: int | None = 1) -> str:
    """Return plain values as JSON; NaN and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, indent=indent, allow_nan=False)


def write_json(path: str | os.PathLike[str], content: object, indent: int | None = 1) -> None:
    """Write plain values as JSON to `path` through `atomic_path`; see `json_text`."""
    atomic_write(path, json_text(content, indent) + "\n")


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


def _cannot_write(target: Path, reason: str) -> FishnetError:
    kept = "nothing was written"
    with suppress(OSError):  # a folder without read permission
        kept = "the file that was there is unchanged" if target.exists() else kept
    return FishnetError(f"cannot write {target}: {reason}; {kept}. Free disk space or choose another folder.")


def _concerns(error: OSError, target: Path) -> bool:
    if error.filename is None:
        return True
    named, target = Path(os.fsdecode(error.filename)).absolute(), target.absolute()
    return named.parent == target.parent or named in target.parents


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename durable; Windows and some network file systems do not support this."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
"""File name suffixes of the image formats that can be written, in lower case."""


def check_picture_name(path: Path) -> None:
    """Raise UsageError if the name of a picture ends in neither .png nor .jpg."""
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise UsageError(f"cannot write a picture to {path}: the name must end in .png or .jpg")
