"""Run timm's own model tests on every registered fish.

    python tests/timm_conformance.py                         fetch timm's source distribution, run all tests on all fish
    python tests/timm_conformance.py --source timm-1.0.31.tar.gz
    python tests/timm_conformance.py -- -k fishnet_nano -x   anything after -- goes to pytest

The tests are those of the installed version, as published, with one change: our module is appended to
`FEAT_INTER_FILTERS`, timm's list of modules whose models give intermediate features. Tests that load pretrained weights
get them from a server on loopback: random weights in the published file format, with a checksum to match.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch

import fishnet  # registers the family
from fishnet.models.checkpoints.layouts import convert_state
from fishnet.models.checkpoints.pretrained import MIRROR_VARIABLE, PRETRAINED

PROJECT = Path(__file__).resolve().parents[1]


def source_archive(folder: Path) -> Path:
    """Return timm's source distribution of the installed version, fetched by pip on the first call."""
    archive = folder / f"timm-{timm.__version__}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", "timm", f"timm=={timm.__version__}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *wanted, "--dest", folder], check=True)
    return archive


def unpack_tests(archive: Path, folder: Path) -> Path:
    """Unpack timm's tests and their settings, not timm itself, and add our module to the list of modules."""
    with tarfile.open(archive) as packed:
        top = packed.getnames()[0].partition("/")[0]
        wanted = [m for m in packed.getmembers() if m.name.startswith((f"{top}/tests/", f"{top}/pyproject.toml"))]
        packed.extractall(folder, members=wanted, filter="data")
    tests = folder / top / "tests" / "test_models.py"
    lines = tests.read_text(encoding="utf-8").splitlines()
    (end,) = [
        node.end_lineno
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FEAT_INTER_FILTERS"
    ]
    lines.insert(end, "FEAT_INTER_FILTERS.append('fishnet')")
    tests.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tests


def published_archives(folder: Path) -> dict[str, str]:
    """Write random weights in the format of each published file; return their checksums by tag."""
    checksums = {}
    for tag, entry in PRETRAINED.items():
        state = convert_state(fishnet.create_model(entry.model).state_dict(), to=entry.layout)
        content = io.BytesIO()
        torch.save(state, content)
        with zipfile.ZipFile(folder / entry.archive, "w") as packed:
            packed.writestr(entry.file, content.getvalue())
        checksums[tag] = hashlib.sha1(content.getvalue(), usedforsecurity=False).hexdigest()
    return checksums


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line per request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def published_weights() -> Iterator[None]:
    """Serve stand-ins for the published weights on loopback, with a cache of their own."""
    with tempfile.TemporaryDirectory() as served, tempfile.TemporaryDirectory() as cache:
        for tag, checksum in published_archives(Path(served)).items():
            PRETRAINED[tag] = dataclasses.replace(PRETRAINED[tag], sha1=checksum)
        handler = functools.partial(QuietHandler, directory=served)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            os.environ[MIRROR_VARIABLE] = f"http://127.0.0.1:{server.server_port}"
            torch.hub.set_dir(cache)
            yield
            server.shutdown()


class Patience:
    """Pytest plugin: timm's time limits are for its own runners, not for a busy machine."""

    @staticmethod
    def pytest_itemcollected(item: pytest.Item) -> None:
        """Let every test take up to half an hour."""
        item.add_marker(pytest.mark.timeout(1800), append=False)


def main() -> int:
    """Fetch, unpack and run; return pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="timm's source distribution; fetched by pip where not given")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    archive = options.source or source_archive(PROJECT / "build" / "timm")
    with tempfile.TemporaryDirectory() as folder, published_weights():
        tests = unpack_tests(archive, Path(folder))
        settings = ["-c", str(tests.parents[1] / "pyproject.toml"), "-p", "no:cacheprovider", "-q", "-ra"]
        selection = options.pytest if "-k" in options.pytest else ["-k", "fish", *options.pytest]
        return pytest.main([str(tests), *settings, *selection], plugins=[Patience()])


if __name__ == "__main__":
    sys.exit(main())
