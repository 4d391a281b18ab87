"""The wheel works in an environment of its own, and torch.hub finds the family."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of a fresh environment that holds the wheel; dependencies are borrowed from this one."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root / "dist"), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (root / "dist").glob("fishnet_vision-*.whl")
    venv.create(root / "env", with_pip=True)
    bin_folder = root / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    # A path file adds the folder but not the path files in it, so the checkout that is installed there stays hidden.
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def outside(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the installed `fishnet` in a folder that is no checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [installed / "fishnet", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    probe = subprocess.run(
        [installed / "python", "-c", "import fishnet; print(fishnet.__file__)"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(installed.parent) in probe.stdout


def test_info_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "16,628,904" in outside(installed, tmp_path, "info", "fishnet99")


def test_the_demo_trains_by_a_recipe_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    outside(installed, tmp_path, "demo", "--quick", "--out", "demo")
    for name in ("run/model.safetensors", "run/report.html", "run/metrics.csv", "predictions/results.json"):
        assert (tmp_path / "demo" / name).is_file(), name


def test_torch_hub_loads_a_member_from_a_checkout() -> None:
    model = torch.hub.load(str(PROJECT), "fishnet_nano", source="local", num_classes=7, trust_repo=True)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
