"""Published weights are downloaded once, checked, kept and converted; every failure says what to do by hand."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.models.checkpoints import pretrained
from fishnet.models.checkpoints.layouts import convert_state
from fishnet.models.checkpoints.pretrained import PRETRAINED, cache_folder, fetch
from fishnet.models.checkpoints.weights import load_weights

TAG = "osmr_in1k"
FILE = "fishnet150-0475-93e26daa.pth"


@dataclass
class Server:
    """A mirror on this machine, and what has been asked of it."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    promised_extra: int = 0
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + state.promised_extra))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setenv("FISHNET_WEIGHTS_URL", state.url + "/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield state
        httpd.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def packed(content: bytes, name: str = FILE) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def publish(model: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str) -> bytes:
    """Let the tag stand for the weights of a model; return the unpacked checkpoint."""
    stream = io.BytesIO()
    torch.save(convert_state(model.state_dict(), "pytorchcv"), stream)
    content = stream.getvalue()
    monkeypatch.setitem(PRETRAINED, TAG, replace(PRETRAINED[TAG], sha1=hashlib.sha1(content).hexdigest(), model=name))
    return content


@pytest.fixture
def nano() -> nn.Module:
    torch.manual_seed(1)
    return create_model("fishnet_nano").eval()


@pytest.fixture
def published(nano: nn.Module, server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    content = publish(nano, monkeypatch, "fishnet_nano")
    server.files[f"{FILE}.zip"] = packed(content)
    return content


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def test_the_tag_is_the_published_file() -> None:
    entry = PRETRAINED[TAG]
    assert entry.url == f"https://github.com/osmr/imgclsmob/releases/download/v0.0.502/{FILE}.zip"
    assert entry.sha1 == "93e26daaf570bc92b58f7421ab28c22ca405ad93"
    assert (entry.model, entry.layout, entry.file, entry.archive) == ("fishnet150", "pytorchcv", FILE, f"{FILE}.zip")


def test_downloads_once_checks_and_keeps(published: bytes, server: Server, cache: Path) -> None:
    assert cache_folder() == cache
    path = fetch(TAG)
    assert path == cache / FILE
    assert path.read_bytes() == published
    assert left_in(cache) == [FILE]
    assert fetch(TAG) == path
    assert server.requests == [f"/{FILE}.zip"]


def test_loads_by_tag(published: bytes, nano: nn.Module) -> None:
    torch.manual_seed(2)
    model = create_model("fishnet_nano", weights=TAG).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), nano(x))
    three = create_model("fishnet_nano", num_classes=3)
    with pytest.raises(FishnetError, match="has 1000 classes, but the model has 3 classes"):
        load_weights(three, TAG)
    assert load_weights(three, TAG, skip_classifier="resize").layout == "pytorchcv"


def test_timm_pretrained_end_to_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorchcv.model_provider import get_model

    torch.manual_seed(3)
    theirs = get_model("fishnet150").eval()
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    stream = io.BytesIO()
    torch.save(theirs.state_dict(), stream)
    entry = replace(PRETRAINED[TAG], sha1=hashlib.sha1(stream.getvalue()).hexdigest())
    monkeypatch.setitem(PRETRAINED, TAG, entry)
    server.files[f"{FILE}.zip"] = packed(stream.getvalue())
    x = torch.randn(1, 3, 64, 64)
    ours = timm.create_model("fishnet150", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        features = ours.forward_features(x)
    fine = timm.create_model("fishnet150", pretrained=True, num_classes=5).eval()
    with torch.no_grad():
        assert torch.equal(fine.forward_features(x), features)
    assert fine(x).shape == (1, 5)
    assert len(server.requests) == 1


def test_unknown_tag() -> None:
    with pytest.raises(UsageError, match=r"unknown weights 'osmr'; known are osmr_in1k"):
        fetch("osmr")


def check_advice(error: FishnetError, cache: Path) -> None:
    """The one line names the address and the file to make by hand."""
    message = str(error)
    assert PRETRAINED[TAG].url in message
    assert str(cache) in message
    assert f"zipped as {FILE}.zip or unzipped as {FILE}." in message
    assert "\n" not in message


def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHNET_WEIGHTS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(FishnetError, match=r"cannot download http://127\.0\.0\.1:9/.*zip: .*refused") as caught:
        fetch(TAG)
    check_advice(caught.value, cache)
    assert left_in(cache) == []


@pytest.mark.parametrize(
    "failure", ["absent", "broken off", "other content", "other archive", "no archive", "no address"]
)
def test_failed_download_leaves_nothing(
    failure: str, published: bytes, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{FILE}.zip"
    if failure == "absent":
        del server.files[name]
    elif failure == "broken off":
        server.promised_extra = 1000
    elif failure == "other content":
        server.files[name] = packed(published[:-1] + b"x")
    elif failure == "other archive":
        server.files[name] = server.files[name][:-2000]
    elif failure == "no archive":
        server.files[name] = b"<html>moved</html>"
    else:
        monkeypatch.setenv("FISHNET_WEIGHTS_URL", "nonsense")
    with pytest.raises(FishnetError) as caught:
        fetch(TAG)
    check_advice(caught.value, cache)
    assert left_in(cache) == []


def test_wrong_hash_is_shown(published: bytes, server: Server) -> None:
    server.files[f"{FILE}.zip"] = packed(b"something else")
    found = hashlib.sha1(b"something else").hexdigest()
    with pytest.raises(FishnetError, match=f"SHA-1 {found}, expected {PRETRAINED[TAG].sha1}"):
        fetch(TAG)


@pytest.mark.parametrize("name", [FILE, f"{FILE}.zip"])
def test_file_put_there_by_hand_is_taken(name: str, published: bytes, server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / name).write_bytes(server.files[name] if name.endswith(".zip") else published)
    assert fetch(TAG).read_bytes() == published
    assert server.requests == []


@pytest.mark.parametrize("name", [FILE, f"{FILE}.zip"])
def test_wrong_file_put_there_by_hand_is_refused_and_kept(name: str, server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / name).write_bytes(packed(b"other") if name.endswith(".zip") else b"other")
    with pytest.raises(FishnetError, match=r"does not contain the published weights.*Delete it") as caught:
        fetch(TAG)
    check_advice(caught.value, cache)
    assert left_in(cache) == [name]
    assert server.requests == []


def test_cache_folder_that_cannot_be_made(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(FishnetError, match=r"cannot save .* TORCH_HOME"):
        fetch(TAG)


def test_silent_server_times_out(server: Server, published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(pretrained, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FISHNET_WEIGHTS_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(FishnetError, match=r"cannot download .*timed out"):
            fetch(TAG)
