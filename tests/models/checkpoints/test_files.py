"""Every file format opens, and no file can run code, escape its archive or fill the memory."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from fishnet.errors import FishnetError, UsageError
from fishnet.models.checkpoints import files as checkpoint_files
from fishnet.models.checkpoints.files import open_checkpoint, read_metadata, save_state, write_checkpoint
from fishnet.models.checkpoints.states import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def torch_bytes(content: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def zipped(content: bytes, name: str = "weights.pth", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


FORMATS: dict[str, bytes] = {
    "state.safetensors": safetensors_bytes(STATE),
    "state.pth": torch_bytes(STATE),
    "state.pt": torch_bytes(STATE),
    "state.tar": torch_bytes({"state_dict": STATE, "epoch": 3}),
    "state.ckpt": torch_bytes({"state_dict": STATE, "pytorch-lightning_version": "2.6.6"}),
    "legacy.pth": torch_bytes(STATE, legacy=True),
    "packed.pth.zip": zipped(torch_bytes(STATE)),
    "packed_legacy.pth.zip": zipped(torch_bytes(STATE, legacy=True)),
    "packed_safetensors.zip": zipped(safetensors_bytes(STATE), "weights.safetensors"),
    # Names lie; the content counts.
    "renamed.safetensors": torch_bytes(STATE),
    "renamed.pth": safetensors_bytes(STATE),
    "renamed_zip.pth": zipped(torch_bytes(STATE)),
    "renamed_torch.pth.zip": torch_bytes(STATE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_reads_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    assert same(read_checkpoint(path))
    assert same(read_checkpoint(str(path)))


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    torch.save(STATE, path)
    state = read_checkpoint(path)
    state["a.bias"] += 1  # a private copy: the file does not change
    assert same(read_checkpoint(path))
    write_checkpoint(path, {"b": torch.zeros(1000)})
    assert torch.equal(state["a.weight"], STATE["a.weight"])


class Trap:
    """Pickles as a call that makes a file."""

    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def hostile_files(trap: Trap) -> dict[str, bytes]:
    content = {"extra": trap, "state_dict": STATE}
    files = {
        "new.pth": torch_bytes(content),
        "legacy.pth": torch_bytes(content, legacy=True),
        "alone.pth": torch_bytes(trap),
        "plain2.pth": pickle.dumps(content, protocol=2),
        "plain2_alone.tar": pickle.dumps(trap, protocol=2),
        "plain5.pth": pickle.dumps(trap, protocol=5),
    }
    return files | {f"{name}.zip": zipped(data, "weights.pth") for name, data in files.items()}


@pytest.mark.parametrize(
    ("function", "shown", "argument"),
    [
        (os.mkdir, "mkdir", "{}"),
        (os.system, "system", "echo > {}"),
        (eval, "eval", "__import__('pathlib').Path('{}').touch()"),
    ],
)
def test_hostile_pickle_is_refused_and_nothing_runs(
    function: Callable[..., Any], shown: str, argument: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    trap = Trap(function, argument.format(victim))
    pickle.loads(pickle.dumps(trap))  # the trap works where code is run
    assert victim.exists()
    victim.rmdir() if victim.is_dir() else victim.unlink()
    for name, content in hostile_files(trap).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FishnetError, match="refused") as caught:
            read_checkpoint(path)
        message = str(caught.value)
        assert not victim.exists(), name
        assert str(path) in message
        assert "no code was run" in message
        assert "\n" not in message
        if "plain5" not in name:  # protocol 5 is refused before the reader sees what is asked for
            assert shown in message


def test_whole_model_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": nn.Linear(2, 2)}, path)
    with pytest.raises(FishnetError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_companions_are_read_over(legacy: bool, tmp_path: Path) -> None:
    companions = {
        "best_prec1": np.float64(77.4),
        "best_prec5": np.float32(93.6),
        "curve": np.arange(5.0),
        "args": argparse.Namespace(lr=0.1, arch="fishnet99", paths=[Path("x")]),
        "epoch": 99,
        "arch": "fishnet99",
        "loss": torch.tensor(1.0),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    path = tmp_path / "released.tar"
    prefixed = {f"module.{key}": value for key, value in STATE.items()}
    path.write_bytes(torch_bytes({**companions, "state_dict": prefixed}, legacy))
    assert same(read_checkpoint(path))
    # As NumPy 1 wrote it.
    content = torch_bytes({**companions, "state_dict": prefixed}, legacy=True)
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(read_checkpoint(path))


def test_reading_leaves_no_trust_behind(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    torch.save(STATE, path)
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_file(name: str, share: float, tmp_path: Path) -> None:
    big = {"a": torch.randn(2000)}
    content = {"safetensors": safetensors_bytes(big), "legacy": torch_bytes(big, True), "zip": zipped(torch_bytes(big))}
    kind = "legacy" if "legacy" in name else "zip" if "zip" in name else "safetensors" if "safe" in name else "torch"
    whole = content.get(kind, torch_bytes(big))
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FishnetError, match=re.escape(str(path))) as caught:
        read_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world, this is text", "is not a checkpoint"),
        (b'{"epoch": 1, "loss": 0.5}', "is not a checkpoint"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x80\x02" + bytes(100), "damaged|refused"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"\xff" * 7 + b"\x00{" + bytes(50), "damaged"),
        (pickle.dumps([1, 2, 3], protocol=2), "damaged|refused|contains a"),
        (torch_bytes([1, 2, 3]), "contains a list, not a state dict"),
        (torch_bytes({"epoch": 3, "lr": 0.1}), r"contains no state dict \(found: epoch, lr\)"),
        (torch_bytes({}), "contains no state dict"),
    ],
)
def test_what_is_no_checkpoint_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(FishnetError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"cannot read .*absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(FishnetError, match="cannot read"):
        read_checkpoint(tmp_path)


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"script/{name}", b"3\n" if name == "version" else pickle.dumps((), protocol=2))
    with pytest.raises(FishnetError, match="is a TorchScript program"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../evil.pth", "/evil.pth", "a/../../evil.pth", "..\\evil.pth", "C:evil.pth"])
def test_archive_member_outside_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = folder / "evil.pth.zip"
    path.write_bytes(zipped(torch_bytes(STATE), name))
    with pytest.raises(FishnetError, match="points outside the archive"):
        read_checkpoint(path)
    assert [p.name for p in tmp_path.rglob("*.pth")] == []


def test_archive_of_several_files_or_of_archives_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.pth.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pth", torch_bytes(STATE))
        archive.writestr("b.pth", torch_bytes(STATE))
    with pytest.raises(FishnetError, match="contains 2 files"):
        read_checkpoint(path)
    path.write_bytes(zipped(zipped(torch_bytes(STATE))))
    with pytest.raises(FishnetError, match="archive inside an archive"):
        read_checkpoint(path)
    path.write_bytes(zipped(b"hello", "readme.txt"))
    with pytest.raises(FishnetError, match=r"contains 'readme.txt', not a checkpoint"):
        read_checkpoint(path)


def test_archive_may_hold_what_a_mac_adds(tmp_path: Path) -> None:
    path = tmp_path / "mac.pth.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/a.pth", torch_bytes(STATE))
        archive.writestr("__MACOSX/._a.pth", b"")
    assert same(read_checkpoint(path))


def test_zip_bombs_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "SMALL_ENOUGH", 2**16)
    path = tmp_path / "bomb.pth.zip"
    path.write_bytes(zipped(bytes(2**22)))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked the bomb"))
    with pytest.raises(FishnetError, match=r"is refused: its [\d,]+ packed bytes would unpack to 4,194,304"):
        read_checkpoint(path)
    # The same trick inside torch's own format.
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("bomb/data/0", bytes(2**22))
    with pytest.raises(FishnetError, match="is refused"):
        read_checkpoint(path)


def test_damaged_archive_member(tmp_path: Path) -> None:
    content = bytearray(zipped(torch_bytes({"a": torch.randn(5000)})))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "flipped.pth.zip"
    path.write_bytes(content)
    with pytest.raises(FishnetError, match="damaged"):
        read_checkpoint(path)


def test_save_state_writes_plain_copies_and_metadata(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    state = {
        "nhwc": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "tied1": tied,
        "tied2": tied,
        "part": torch.randn(10)[2:5],
        "transposed": torch.randn(3, 5).T,
        "parameter": nn.Parameter(torch.randn(3)),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "new_folder" / "state.safetensors"
    save_state(path, state, {"model.json": '{"model": "x"}'})
    assert same(read_checkpoint(path), {key: value.detach() for key, value in state.items()})
    assert read_metadata(path) == {"format": "pt", "model.json": '{"model": "x"}'}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_metadata_of_other_files_is_empty(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "a.pth") == read_metadata(tmp_path / "b.safetensors") == {}
    assert read_metadata(tmp_path / "absent.safetensors") == {}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".tar"])
def test_written_checkpoints_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"state{suffix}"
    write_checkpoint(path, STATE)
    assert same(read_checkpoint(path))
    if suffix == ".tar":
        assert list(torch.load(path)["state_dict"]) == ["module.a.weight", "module.a.bias"]


def test_unknown_suffix_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        write_checkpoint(tmp_path / "state.onnx", STATE)
    assert list(tmp_path.iterdir()) == []
