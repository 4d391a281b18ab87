"""Paths as a user gives them: `pathlib` objects, relative, with spaces, and folders that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fishnet
from fishnet.runs import RunFolder
from tests.data.makers import class_folders

TINY: dict[str, Any] = {
    "model": "fishnet_nano", "model_option": {"stem_stride": 1}, "size": 32, "epochs": 1, "batch_size": 8,
    "workers": 0, "device": "cpu", "max_steps": 1,
}  # fmt: skip
QUICK: dict[str, Any] = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": {"cat": 4, "ship": 4}, "val": {"cat": 2, "ship": 2}}
    return class_folders(tmp_path_factory.mktemp("data") / "my photos", counts)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fishnet.train("classification", data=photos, out=tmp_path_factory.mktemp("runs") / "first", **TINY)


def test_path_objects_are_taken_wherever_paths_are(trained: RunFolder, photos: Path, tmp_path: Path) -> None:
    second = fishnet.train("classification", data=photos, out=tmp_path / "second", weights=trained.path, **TINY)
    assert second.model_file.is_file()
    found = fishnet.evaluate(trained.path, data=photos, out=tmp_path / "metrics", also=photos, **QUICK)
    assert found.json == tmp_path / "metrics" / "evaluation_val.json"
    assert found.others == []  # the same folder again
    assert fishnet.Predictor(trained.path, device="cpu")(next(photos.rglob("*.jpg")))["labels"]


def test_one_input_need_not_be_a_list(
    trained: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    assert len(fishnet.predict(trained.path, "val", tmp_path / "a", **QUICK).images) == 4
    assert len(fishnet.predict(trained.path, Path("val"), tmp_path / "b", **QUICK).images) == 4
