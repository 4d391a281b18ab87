"""Fixtures shared by the whole suite: where the real data sets and the reference outputs are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FISHNET_DATA", PROJECT.parent / "shared" / "data"))


def _absent(what: Path) -> None:
    message = f"{what} is absent; set FISHNET_DATA to the folder that holds the packed data sets"
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip real-data tests: {message}")
    pytest.skip(message)


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that unpacks one data set once and gives its folder; treat the folder as read-only."""
    root = tmp_path_factory.mktemp("data")

    def folder(name: str, mini: bool = True) -> Path:
        script = DATA / "unpack.py"
        if not script.is_file():
            _absent(script)
        base = root / ("mini" if mini else "full")
        if not (base / name).is_dir():
            staging = root / f"staging_{name}"
            command = [sys.executable, str(script), str(staging), name, *(["--mini"] if mini else [])]
            subprocess.run(command, check=True, capture_output=True)
            base.mkdir(exist_ok=True)
            for part in staging.iterdir():
                part.rename(base / part.name)
        return base / name

    return folder


@pytest.fixture(scope="session")
def mini(unpack: Callable[..., Path]) -> Callable[[str], Path]:
    """Return a function: name of a data set -> folder of its small version, read-only."""
    return lambda name: unpack(name, mini=True)


@pytest.fixture
def mini_copy(mini: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Like `mini`, but a copy that the test may change."""
    return lambda name: Path(shutil.copytree(mini(name), tmp_path / f"copy_of_{name}"))


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the reference outputs of the released networks."""
    folder = DATA.parent / "parity"
    if not folder.is_dir():
        _absent(folder)
    return folder


@pytest.fixture(scope="session")
def nano_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dict of a fishnet_nano classifier that has seen noise: its BatchNorms have statistics of their own."""
    from fishnet import create_model

    generator = torch.Generator().manual_seed(5)
    model = create_model("fishnet_nano").train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "nano.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _restore_torch_settings() -> object:
    """Keep a test's thread count and default dtype from leaking into the next."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
