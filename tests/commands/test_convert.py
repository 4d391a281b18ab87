"""`fishnet convert` as people call it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from fishnet.cli import main
from fishnet.commands.convert import convert
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.models.checkpoints.files import read_metadata, save_state
from fishnet.models.checkpoints.layouts import LAYOUTS, convert_state, detect_layout
from fishnet.models.checkpoints.states import read_checkpoint
from tests.models_on_disk import classifier_card, save_classifier


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    torch.manual_seed(1)
    return create_model("fishnet_nano", num_classes=10).eval()


@pytest.fixture
def released(nano: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "released.tar"
    state = {f"module.{key}": value for key, value in convert_state(nano.state_dict(), "released").items()}
    torch.save({"state_dict": state, "best_prec1": torch.tensor(77.4), "epoch": 100}, path)
    return path


def equals(path: Path, nano: nn.Module) -> bool:
    found, expected = convert_state(read_checkpoint(path)), nano.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".tar"])
def test_writes_every_layout_in_every_format(
    to: str, suffix: str, released: Path, nano: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / f"new{suffix}"
    result = convert(str(released), str(dest), to=to)
    assert detect_layout(read_checkpoint(dest)) == to
    assert equals(dest, nano)
    parameters = sum(p.numel() for p in nano.parameters())
    line = f"fishnet_nano: layout released -> {to}, {len(nano.state_dict())} tensors, {parameters:,} parameters: {dest}"
    assert capsys.readouterr().out == line + "\n"
    assert (result.layout, result.to, result.member, result.parameters) == ("released", to, "fishnet_nano", parameters)


def test_the_released_format_is_that_of_the_release(released: Path, tmp_path: Path) -> None:
    convert(str(released), str(tmp_path / "new.tar"), to="released")
    keys = torch.load(tmp_path / "new.tar")["state_dict"].keys()
    assert keys == torch.load(released)["state_dict"].keys()


def test_command_line(released: Path, nano: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "new.pth"
    assert main(["convert", str(released), str(dest), "--to", "pytorchcv"]) == 0
    assert "layout released -> pytorchcv" in capsys.readouterr().out
    assert main(["convert", str(released), str(dest)]) == 2
    error = capsys.readouterr().err
    assert "exists; pass --overwrite" in error
    assert detect_layout(read_checkpoint(dest)) == "pytorchcv"
    assert main(["convert", str(released), str(dest), "--overwrite"]) == 0
    assert detect_layout(read_checkpoint(dest)) == "fishnet"
    assert main(["convert", str(released), str(dest), "--to", "keras"]) == 2
    assert main(["convert", str(tmp_path / "absent.pth"), str(tmp_path / "x.pth")]) == 2
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert main(["convert", str(tmp_path / "junk.pth"), str(tmp_path / "x.pth")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "junk.pth is not a checkpoint" in lines[-1]
    assert not (tmp_path / "x.pth").exists()


def test_destination_without_a_known_suffix(released: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.safetensors, \.pth, \.pt, \.tar"):
        convert(str(released), str(tmp_path / "new.onnx"))


def test_onto_itself(released: Path, nano: nn.Module) -> None:
    convert(str(released), str(released), overwrite=True)
    assert equals(released, nano)


def test_run_folder_and_its_card(nano: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, classes = tmp_path / "run", [f"class {index}" for index in range(10)]
    card = classifier_card(classes, options={"stem_stride": 1})
    run.mkdir()
    given = read_checkpoint(save_classifier(run / "model.safetensors", nano, card))
    convert(str(run), str(tmp_path / "same.safetensors"))
    same = read_checkpoint(tmp_path / "same.safetensors")
    assert same.keys() == given.keys()
    assert all(torch.equal(same[key], given[key]) for key in given)
    assert read_metadata(tmp_path / "same.safetensors")["model.json"] == card.to_json()
    assert "stem_stride" not in capsys.readouterr().out
    # A layout that other programs read says nothing of the card, and they must be told of what it held.
    convert(str(run), str(tmp_path / "other.safetensors"), to="pytorchcv")
    assert "model.json" not in read_metadata(tmp_path / "other.safetensors")
    assert "does not record stem_stride=1" in capsys.readouterr().out
    assert equals(tmp_path / "other.safetensors", nano)


def test_a_damaged_card_is_one_line(nano: nn.Module, tmp_path: Path) -> None:
    save_state(tmp_path / "new.safetensors", nano.state_dict(), {"model.json": "{}"})
    with pytest.raises(FishnetError, match=r"new\.safetensors: its model\.json is damaged"):
        convert(str(tmp_path / "new.safetensors"), str(tmp_path / "other.pth"))
    assert not (tmp_path / "other.pth").exists()


def test_moving_average_or_last_step(nano: nn.Module, tmp_path: Path) -> None:
    other = create_model("fishnet_nano", num_classes=10)
    torch.save({"model": other.state_dict(), "model_ema": nano.state_dict()}, tmp_path / "both.pth")
    convert(str(tmp_path / "both.pth"), str(tmp_path / "average.pth"))
    convert(str(tmp_path / "both.pth"), str(tmp_path / "last.pth"), prefer_ema=False)
    assert equals(tmp_path / "average.pth", nano)
    assert equals(tmp_path / "last.pth", other)


def test_what_cannot_be_converted_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resnet, ablation = tmp_path / "resnet.pth", tmp_path / "ablation.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), resnet)
    with pytest.raises(FishnetError, match=r"cannot convert .*resnet\.pth: unknown checkpoint layout"):
        convert(str(resnet), str(tmp_path / "new.pth"))
    torch.save(create_model("fishnet_nano", reduction="conv1x1").state_dict(), ablation)
    with pytest.raises(FishnetError, match=r"cannot convert .*ablation\.pth: layout released has no names for"):
        convert(str(ablation), str(tmp_path / "new.pth"), to="released")
    assert not (tmp_path / "new.pth").exists()
    convert(str(ablation), str(tmp_path / "new.safetensors"))
    assert "a FishNet with another configuration" in capsys.readouterr().out
