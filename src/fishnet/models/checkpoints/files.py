"""Read and write checkpoint files without executing any code in them.

The format is detected from the content, not from the file name: safetensors, PyTorch's zip format, PyTorch's older
pickle format, or a plain zip archive of one of these (`.pth.zip`). Pickles are read by PyTorch's weights-only
unpickler, which builds tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_path

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".pth.zip")
WRITTEN_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")
Kind = Literal["safetensors", "torch zip", "pickle", "zip"]

# Weights hardly compress: a file that unpacks to far more than its size is a zip bomb, made to fill the memory.
LARGEST_UNPACKED = 8 * 2**30
SMALL_ENOUGH = 100 * 2**20
LARGEST_RATIO = 100


class _Inert:
    """Replacement for objects that old checkpoints contain beside the weights; it ignores its arguments and state."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Harmless objects beside the weights (a NumPy accuracy, the command line of the training). They are never built: their
# names in the pickle are resolved to a replacement without effect.
_STAND_INS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    *(
        (_Inert, name)
        for name in (
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "argparse.Namespace",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "datetime.datetime",
            "datetime.timedelta",
        )
    ),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
]


def open_checkpoint(path: str | Path) -> object:
    """Return the content of a checkpoint file: a state dict or the containers around it, tensors on the CPU.

    Files are memory-mapped if the format allows it.

    Raises:
        FishnetError: The file cannot be read, is not a checkpoint, is damaged, or contains code.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _read(stream, path, str(path))
    except OSError as error:
        raise FishnetError(f"cannot read {path}: {error.strerror or error}.") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty if there is none or for other formats."""
    try:
        with safe_open(path, framework="pt") as reader:
            return dict(reader.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _read(stream: BinaryIO, path: Path | None, shown: str) -> object:
    """Read an open file in the format of its content; `path` is None for a file inside an archive."""
    kind = _kind(stream, shown)
    if kind == "zip":
        if path is None:
            raise FishnetError(f"{shown} is an archive inside an archive; unpack it first.")
        return _read_zipped(stream, shown)
    if kind == "safetensors":
        try:
            return load_file(path) if path is not None else load_safetensors(stream.read())
        except SafetensorError as error:
            raise _damaged(shown, error) from error
    return _read_pickled(stream, path, shown, kind)


def _kind(stream: BinaryIO, shown: str) -> Kind:
    head = stream.read(512)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise FishnetError(f"{shown} is empty; download or copy the file again.")
    if head[:4] == b"PK\x03\x04":
        return _kind_of_zip(stream, shown)
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    text = head.lstrip().lower()
    hint = f"Supported are {', '.join(SUFFIXES)} files."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        hint = "It is a web page: the download returned an error page instead of the weights."
    elif text.startswith(b"version https://git-lfs"):
        hint = "It is a Git LFS pointer: run `git lfs pull` to download the weights."
    raise FishnetError(f"{shown} is not a checkpoint. {hint}")


def _kind_of_zip(stream: BinaryIO, shown: str) -> Kind:
    """Distinguish PyTorch's own format (a zip with `<name>/data.pkl`) from a plain archive."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise _damaged(shown, error) from error
    finally:
        stream.seek(0)
    if not any(re.fullmatch(r"[^/]+/data\.pkl", entry.filename) for entry in entries):
        return "zip"
    _refuse_bomb(shown, sum(e.file_size for e in entries), sum(e.compress_size for e in entries))
    return "torch zip"


def _read_zipped(stream: BinaryIO, shown: str) -> object:
    """Read the checkpoint in a plain zip archive in memory, without writing any file."""
    try:
        with zipfile.ZipFile(stream) as archive:
            member = single_member(archive, shown)
            content = archive.read(member)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise _damaged(shown, error) from error
    return _read(io.BytesIO(content), None, f"{member.filename} in {shown}")


def single_member(archive: zipfile.ZipFile, shown: str) -> zipfile.ZipInfo:
    """Return the only checkpoint in a plain zip archive.

    Raises:
        FishnetError: The archive has no or several members, or one with a path outside the archive or the size of a
            zip bomb.
    """
    extras = ("__MACOSX/", ".DS_Store")
    members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith(extras)]
    if len(members) != 1:
        raise FishnetError(f"{shown} contains {len(members)} files; a zipped checkpoint must contain exactly one.")
    (member,) = members
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in member.filename:
        raise FishnetError(f"{shown} is refused: its member {member.filename!r} points outside the archive.")
    if not member.filename.endswith(SUFFIXES[:-1]):
        raise FishnetError(f"{shown} contains {member.filename!r}, not a checkpoint ({', '.join(SUFFIXES[:-1])}).")
    _refuse_bomb(shown, member.file_size, member.compress_size)
    return member


def _refuse_bomb(shown: str, unpacked: int, packed: int) -> None:
    if unpacked > LARGEST_UNPACKED or (unpacked > SMALL_ENOUGH and unpacked > LARGEST_RATIO * packed):
        raise FishnetError(
            f"{shown} is refused: its {packed:,} packed bytes would unpack to {unpacked:,}, more than weights do. "
            "Unpack it by hand if you trust it."
        )


def _read_pickled(stream: BinaryIO, path: Path | None, shown: str, kind: Kind) -> object:
    # torch.load assumes the format of a path that ends in .safetensors, and memory-maps files by path only.
    mapped = path if kind == "torch zip" and path is not None and path.suffix != ".safetensors" else None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")
            return torch.load(mapped or stream, map_location="cpu", weights_only=True, mmap=mapped is not None)
    except pickle.UnpicklingError as error:
        raise _refused(shown, str(error)) from error
    # A damaged or hostile pickle can raise any exception: wrong stack, wrong types, missing records.
    except Exception as error:
        if "TorchScript" in str(error):
            raise FishnetError(f"{shown} is a TorchScript program, not a checkpoint; save its state_dict.") from error
        raise _damaged(shown, error) from error


def _refused(shown: str, message: str) -> FishnetError:
    """Shorten the message of torch to one line, without its advice on how to run the code in the file."""
    if found := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message):
        return FishnetError(
            f"{shown} is refused: it references {found[1]}, which is code, not weights; no code was run. "
            "If you trust its source, open it with the code that wrote it and run torch.save(model.state_dict(), ...)."
        )
    reasons = [line for line in message.splitlines() if line.strip() and "documentation" not in line]
    reason = reasons[-1].rpartition("error: ")[2].strip()[:160] if reasons else "unknown"
    return FishnetError(f"{shown} is refused: it is not a pickle of plain weights ({reason}); no code was run.")


def _damaged(shown: str, error: object) -> FishnetError:
    lines = str(error).strip().splitlines()
    reason = f" ({lines[0][:160]})" if lines else ""
    return FishnetError(f"{shown} is damaged or not a checkpoint{reason}; download or copy the file again.")


def save_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically: an existing file is kept if writing fails.

    Args:
        path: File to write.
        state: Tensors by name, on any device; shared and strided ones are written as contiguous copies.
        metadata: Text entries for the header of the file.

    Raises:
        FishnetError: The file cannot be written.
    """
    with atomic_path(path) as partial:
        save_file(_plain(state), partial, metadata={"format": "pt", **(metadata or {})})


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict in the format given by the suffix of the path.

    `.safetensors` (the only one that stores `metadata`), `.pth` and `.pt` (the plain dict), `.tar` (as in the authors'
    release: `{"state_dict": ...}` with `module.` before each name).

    Raises:
        UsageError: The suffix is another one.
        FishnetError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        save_state(path, state, metadata)
    elif path.suffix in (".pth", ".pt"):
        with atomic_path(path) as partial:
            torch.save(_plain(state), partial)
    elif path.suffix == ".tar":
        with atomic_path(path) as partial:
            torch.save({"state_dict": {f"module.{key}": value for key, value in _plain(state).items()}}, partial)
    else:
        raise UsageError(f"cannot write {path}: the file name must end in {', '.join(WRITTEN_SUFFIXES)}.")


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy every tensor to the CPU, detached, contiguous and with a storage of its own."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[key] = tensor
    return plain
