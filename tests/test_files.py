"""A file is either the old one or the new one, whole; nothing lies around after a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fishnet.errors import FishnetError
from fishnet.files import atomic_path, atomic_write, sweep_partials, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_through_a_file_beside_with_the_same_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    with atomic_path(path) as partial:
        assert partial.parent == path.parent
        assert partial.suffix == ".png"
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["picture.png"]


def test_text_is_utf8_and_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    atomic_write(str(path), "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    atomic_write(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), RuntimeError("other"), SystemExit(3)])
def test_failure_keeps_the_old_file_and_cleans_up(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_full_disk_names_the_file_and_says_that_the_old_one_is_there(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FishnetError, match=rf"cannot write {path}: .*; the file that was there is unchanged"):
        fail_halfway(path, error)
    with pytest.raises(FishnetError, match="nothing was written"):
        fail_halfway(tmp_path / "b.txt", error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_errors_about_other_files_are_not_explained_away(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        Path("/absent/input.txt").read_text()
    with pytest.raises(FishnetError, match="cannot write"):
        atomic_write(tmp_path, "a folder is there")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FishnetError, match=r"cannot write .*a\.txt: .*file is not a folder"):
        atomic_write(tmp_path / "file" / "a.txt", "x")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_read_only_folder() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        try:
            if user == 0:  # root may write everywhere
                os.seteuid(65534)
            with pytest.raises(FishnetError, match="Permission denied"):
                atomic_write(Path(folder) / "a.txt", "x")
            assert names(Path(folder)) == []
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


_FILL = """
import resource, sys
from pathlib import Path
import torch
from fishnet.errors import FishnetError
from fishnet.files import atomic_path, atomic_write, sweep_partials, write_json
from fishnet.models.checkpoints.files import write_checkpoint
folder, state = Path(sys.argv[1]), {"a": torch.zeros(1_000_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name in ("a.safetensors", "a.pth", "a.txt"):
    (folder / name).write_text("old")
    try:
        atomic_write(folder / name, "x" * 200_000) if name == "a.txt" else write_checkpoint(folder / name, state)
    except FishnetError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_every_writer_survives_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the write itself fails, in Python, Rust and C++."""
    done = subprocess.run([sys.executable, "-c", _FILL, str(tmp_path)], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["a.pth", "a.safetensors", "a.txt"]
    for name, line in zip(("a.safetensors", "a.pth", "a.txt"), lines, strict=True):
        assert line.startswith(f"cannot write {tmp_path / name}: ")
        assert "unchanged" in line
        assert (tmp_path / name).read_text() == "old"


def test_sweep_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    script = "import os, sys; from fishnet.files import atomic_path\n"
    script += "with atomic_path(sys.argv[1]) as partial: partial.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "last.ckpt")], check=False)
    (left,) = names(tmp_path)
    assert left.endswith(".part.ckpt")
    for other in ("last.ckpt", ".hidden", ".notes-mine.part.txt"):
        (tmp_path / other).write_text("kept")
    sweep_partials(tmp_path)
    assert names(tmp_path) == [".hidden", ".notes-mine.part.txt", "last.ckpt"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "model.safetensors") as partial:
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "rows": [(1, float("inf")), {"y": 0.5}], "name": "é"})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text, parse_constant=refuse) == {"x": None, "rows": [[1, None], {"y": 0.5}], "name": "é"}
    assert "é" in text
