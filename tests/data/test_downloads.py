from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fishnet.data.downloads import download
from fishnet.errors import FishnetError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `log` records the first byte of each request, `cut` ends the connection after that many bytes."""

    def __init__(self, log: list[int], options: dict, *arguments: object) -> None:
        self.log, self.options = log, options
        super().__init__(*arguments)

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.log.append(start)
        if self.options.get("silent"):
            time.sleep(30)
        if self.path != "/file.bin":
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        if self.options.get("whole"):
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        cut = self.options.pop("cut", len(CONTENT))
        self.wfile.write(CONTENT[start : start + cut])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[int], dict]]:
    log: list[int] = []
    options: dict = {}
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, log, options))
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", log, options
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_a_file_is_downloaded_once(server, tmp_path: Path) -> None:
    url, log, _ = server
    target = tmp_path / "new" / "file.bin"
    for _ in range(2):
        download(f"{url}/file.bin", target, MD5)
    assert target.read_bytes() == CONTENT
    assert log == [0]
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_lost_connection_is_continued(server, tmp_path: Path, whole: bool) -> None:
    url, log, options = server
    options |= {"cut": 300_000, "whole": whole}  # some servers cannot continue
    target = tmp_path / "file.bin"
    with pytest.raises(FishnetError, match=r"cannot download .*; the 0\.3 MB that arrived are kept.* Ask for help"):
        download(f"{url}/file.bin", target, MD5, "Ask for help")
    assert not target.exists()
    download(f"{url}/file.bin", target, MD5)
    assert target.read_bytes() == CONTENT
    assert log == [0, 300_000]


def test_another_file_is_refused_and_removed(server, tmp_path: Path) -> None:
    url, _, _ = server
    with pytest.raises(FishnetError, match="is not the published file"):
        download(f"{url}/file.bin", tmp_path / "file.bin", "0" * 32)
    assert list(tmp_path.iterdir()) == []
    # a part that is longer than the file, or damaged, does not stop later attempts for good
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(CONTENT) + 5))
    download(f"{url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_complete_part_is_taken_without_asking(tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file.bin", "http://no-such-host.invalid/file.bin", "nonsense"])
def test_without_a_network_the_error_comes_within_seconds(tmp_path: Path, address: str) -> None:
    started = time.monotonic()
    with pytest.raises(FishnetError, match="cannot download") as error:
        download(address, tmp_path / "file.bin", MD5, "Place it by hand")
    assert time.monotonic() - started < 10
    assert str(error.value).endswith("Place it by hand")
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_given_up(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _, options = server
    options["silent"] = True
    monkeypatch.setattr("fishnet.data.downloads.SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(FishnetError, match=r"no answer within 0\.5 seconds"):
        download(f"{url}/file.bin", tmp_path / "file.bin", MD5)
    assert time.monotonic() - started < 5


def test_a_missing_file_names_the_status(server, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"(?i)cannot download .*other\.bin: .*not found"):
        download(f"{server[0]}/other.bin", tmp_path / "file.bin", MD5)
