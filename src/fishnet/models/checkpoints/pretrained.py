"""Published weights by tag: in this package, or downloaded once, verified and cached.

Downloads are cached in `torch.hub.get_dir()/checkpoints`, which the environment variable `TORCH_HOME` can change. Files
placed there by hand, zipped or not, are used as well. The environment variable `FISHNET_WEIGHTS_URL` can name a mirror:
the URL of a folder with the files under their original names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from tqdm import tqdm

from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.files import atomic_path
from fishnet.models.checkpoints.files import single_member

MIRROR_VARIABLE = "FISHNET_WEIGHTS_URL"
TIMEOUT_SECONDS = 30
_CHUNK = 2**20


@dataclass(frozen=True)
class Pretrained:
    """One published set of weights."""

    model: str
    """Name of the FishNet that the weights belong to."""
    url: str
    """URL of the zip archive that contains the checkpoint; empty if this package contains it."""
    sha1: str
    """SHA-1 of the unpacked checkpoint."""
    layout: str
    """Layout of the checkpoint: see `fishnet.models.checkpoints.layouts`."""
    note: str
    """Source of the weights and their accuracy."""
    packaged: str = ""
    """File name of the checkpoint in this package."""

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]

    @property
    def file(self) -> str:
        """File name of the unpacked checkpoint."""
        return self.archive.removesuffix(".zip")


PRETRAINED: dict[str, Pretrained] = {
    "osmr_in1k": Pretrained(
        model="fishnet150",
        url="https://github.com/osmr/imgclsmob/releases/download/v0.0.502/fishnet150-0475-93e26daa.pth.zip",
        sha1="93e26daaf570bc92b58f7421ab28c22ca405ad93",
        layout="pytorchcv",
        note="pytorchcv (MIT license), ImageNet-1k, top-5 error 4.75 %",
    ),
    "cifar10": Pretrained(
        model="fishnet_nano",
        url="",
        sha1="8000c5f1fa6f46689236224a3e3b1dc56249aa6a",
        layout="fishnet",
        note="this library (Apache-2.0), CIFAR-10, images of 32 pixels, top-1 accuracy 85.9 %",
        packaged="fishnet_nano_cifar10.safetensors",
    ),
}
PACKAGED = Path(__file__).resolve().parent / "packaged"
"""Folder of the weights in this package."""


def packaged_weights(model: str) -> list[str]:
    """Return the tags of the weights of a model that this package contains."""
    return [tag for tag, entry in PRETRAINED.items() if entry.packaged and entry.model == model]


def cache_folder() -> Path:
    """Return the folder of downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(tag: str) -> Path:
    """Return the checkpoint of a tag, downloading it on the first call.

    Args:
        tag: A key of `PRETRAINED`, such as `osmr_in1k`.

    Returns:
        Path of the unpacked checkpoint, whose SHA-1 has been checked.

    Raises:
        UsageError: The tag is unknown.
        FishnetError: The download failed or a file is not the published one; the message says where to place the file
            by hand. A failed download leaves no files behind.
    """
    if tag not in PRETRAINED:
        raise UsageError(f"unknown weights {tag!r}; known are {', '.join(PRETRAINED)}.{did_you_mean(tag, PRETRAINED)}")
    entry = PRETRAINED[tag]
    if entry.packaged:
        return PACKAGED / entry.packaged
    kept, archive = cache_folder() / entry.file, cache_folder() / entry.archive
    if kept.is_file():
        _check(kept, entry, origin=str(kept), mend=f"Delete it and try again. {_by_hand(entry)}")
    elif archive.is_file():
        _unpack(archive, kept, entry, origin=str(archive), mend=f"Delete it and try again. {_by_hand(entry)}")
    else:
        _fetch(_url(entry), kept, entry)
    return kept


def _fetch(url: str, kept: Path, entry: Pretrained) -> None:
    """Download the archive into a temporary folder in the cache and unpack it."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fishnet-", dir=kept.parent) as folder:
            archive = Path(folder) / entry.archive
            _download(url, archive)
            _unpack(archive, kept, entry, origin=url, mend=_by_hand(entry))
    except urllib.error.HTTPError as error:
        error.close()
        raise FishnetError(f"cannot download {url}: {error}. {_by_hand(entry)}") from error
    except (urllib.error.URLError, HTTPException, ssl.SSLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise FishnetError(f"cannot download {url}: {reason}. {_by_hand(entry)}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise FishnetError(
            f"cannot save {url} in {kept.parent}: {reason}. Set TORCH_HOME to another folder."
        ) from error


def _url(entry: Pretrained) -> str:
    mirror = os.environ.get(MIRROR_VARIABLE)
    return f"{mirror.rstrip('/')}/{urllib.parse.quote(entry.archive)}" if mirror else entry.url


def _by_hand(entry: Pretrained) -> str:
    return (
        f"Download {entry.url} elsewhere and place it in {cache_folder()}, zipped as {entry.archive} "
        f"or unzipped as {entry.file}."
    )


def _download(url: str, target: Path) -> None:
    """Download `url` to `target`, with a progress bar if stderr is a terminal."""
    request = urllib.request.Request(url, headers={"User-Agent": "fishnet"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as stream:
        size = int(response.headers.get("Content-Length") or 0)
        title, quiet = url.rpartition("/")[2], not sys.stderr.isatty()
        with tqdm(total=size or None, unit="B", unit_scale=True, desc=title, disable=quiet) as bar:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
        if size and stream.tell() != size:
            raise ConnectionError(f"connection lost after {stream.tell():,} of {size:,} bytes")


def _unpack(archive: Path, kept: Path, entry: Pretrained, origin: str, mend: str) -> None:
    """Write the checkpoint in `archive` to `kept`, if it is the published one."""
    try:
        with zipfile.ZipFile(archive) as packed, atomic_path(kept) as partial:
            with packed.open(single_member(packed, origin)) as source, partial.open("wb") as stream:
                shutil.copyfileobj(source, stream, _CHUNK)
            _check(partial, entry, origin, mend)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise FishnetError(f"{origin} is not the published archive ({error}). {mend}") from error


def _check(path: Path, entry: Pretrained, origin: str, mend: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
    if found != entry.sha1:
        raise FishnetError(
            f"{origin} does not contain the published weights (SHA-1 {found}, expected {entry.sha1}). {mend}"
        )
