"""Writing files so that a crash, a full disk or a kill never leaves half a file under the real name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fishnet.errors import FishnetError

# torch's zip writer and the safetensors writer report a failed write as exceptions of their own, not as OSError.
_WRITE_FAILURES = ("no space left", "file write failed", "pytorchstreamwriter", "i/o error", "inline_container")

Json = dict[str, Any]
"""Plain values, as JSON files contain them."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    The temporary file has the same suffix (writers that choose the format by it keep working) and its folder is made
    where it is missing. When the block fails the temporary file is removed and an older `path` is as it was.

    Raises:
        FishnetError: The file system refused (disk full, folder read-only, ...); names `path`.
    """
    target = Path(path)
    partial = target.with_name(f".{target.stem}-{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        partial.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        # An error about another file (an input that is missing, say) is not ours to explain.
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
        # After the rename there is none; after a failure, Ctrl-C included, this is the half-written file.
        with suppress(OSError):
            partial.unlink()


def sweep_partials(folder: Path) -> None:
    """Remove what a kill in the middle of `atomic_path` left behind; nobody else may be writing there."""
    for left in folder.glob(f".*-{'[0-9a-f]' * 8}.part*"):
        left.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` through `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def _cannot_write(target: Path, reason: str) -> FishnetError:
    kept = "nothing was written"
    with suppress(OSError):  # a folder that may not even be looked into
        kept = "the file that was there is unchanged" if target.exists() else kept
    return FishnetError(f"cannot write {target}: {reason}; {kept}. Make room or choose another folder.")


def _concerns(error: OSError, target: Path) -> bool:
    if error.filename is None:
        return True
    named, target = Path(os.fsdecode(error.filename)).absolute(), target.absolute()
    return named.parent == target.parent or named in target.parents


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable; Windows and some network file systems cannot, and rename alone must do there."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
