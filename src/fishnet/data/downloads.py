"""Download large files: continued after an interruption, compared with their checksums, and given up within seconds."""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from fishnet.errors import FishnetError

SECONDS = 5
"""Time that a server has to answer, including the lookup of its name."""
_PAUSE = 30
"""Longest pause between two parts of a file, in seconds."""
_CHUNK = 1 << 18


def download(url: str, target: Path, md5: str, advice: str = "") -> None:
    """Download a file, unless it is there already; an interrupted download is continued.

    The file gets its name when it is complete; until then it is called `<name>.part`.

    Args:
        url: Address of the file.
        target: Path of the file.
        md5: Expected MD5 checksum in hexadecimal.
        advice: What to do if the download is impossible, for the message.

    Raises:
        FishnetError: The server does not answer within seconds, the connection is lost, or the file is another one.
    """
    if target.is_file() and check_integrity(target, md5):
        return
    partial = target.with_name(f"{target.name}.part")
    if not (partial.is_file() and check_integrity(partial, md5)):
        try:
            _receive(url, partial)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            kept = (
                f"; the {_size(partial)} that arrived are kept, and the same command continues"
                if _size(partial)
                else ""
            )
            raise FishnetError(f"cannot download {url}: {reason}{kept}. {advice}".strip()) from error
        if not check_integrity(partial, md5):
            partial.unlink()
            raise FishnetError(
                f"{url} is not the published file (its MD5 checksum is not {md5}); it was removed. {advice}".strip()
            )
    partial.replace(target)


def _size(partial: Path) -> str:
    """Return the size of a partial file in words; an empty string if there is none."""
    size = partial.stat().st_size if partial.is_file() else 0
    return f"{size / 1e6:.1f} MB" if size else ""


def _receive(url: str, partial: Path) -> None:
    """Append the rest of a file to the part that is there, with a progress bar if stderr is a terminal."""
    start = partial.stat().st_size if partial.is_file() else 0
    try:
        response = _open(url, start)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:  # 416: nothing follows the partial file, so that it is damaged
            raise
        start, response = 0, _open(url, 0)
    with closing(response):
        start = start if response.status == 206 else 0  # a server that cannot continue sends everything
        length = int(response.headers.get("Content-Length") or 0)
        total = start + length if length else None
        partial.parent.mkdir(parents=True, exist_ok=True)
        title, quiet = url.rpartition("/")[2], not sys.stderr.isatty()
        with (
            partial.open("ab" if start else "wb") as stream,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=title, disable=quiet) as bar,
        ):
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size < total:
            raise ConnectionError("the connection was lost")


def _open(url: str, start: int) -> HTTPResponse:
    """Return the answer to a request of a file from a byte on.

    Raises:
        TimeoutError: There is none within `SECONDS`.
        OSError: It is an error.
    """
    outcome: list[HTTPResponse | Exception] = []
    late = threading.Event()

    def ask() -> None:
        headers = {"User-Agent": "fishnet", **({"Range": f"bytes={start}-"} if start else {})}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_PAUSE)
            outcome.append(answer)
            if late.is_set():
                answer.close()
        except Exception as error:  # raised again below
            outcome.append(error)

    # looking up a name has no timeout of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not outcome:
        late.set()
        raise TimeoutError(f"no answer within {SECONDS} seconds")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
