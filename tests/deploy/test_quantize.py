"""int8: calibration on real images, layers that stay in float, accuracy control, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

import fishnet
from fishnet.data.augmentation import resized
from fishnet.deploy.convert import to_openvino, trace
from fishnet.deploy.parts import parts_of
from fishnet.deploy.quantize import AccuracyControl, last_layers
from fishnet.errors import FishnetError, UsageError
from fishnet.loading import load_model
from fishnet.predictor import Predictor
from fishnet.tasks.base import AnyTask
from tests.deploy.networks import write_model


@pytest.fixture(scope="module")
def photos(mini: Callable[[str], Path]) -> Path:
    return mini("pennfudan") / "train"


@pytest.fixture(scope="module")
def shown(photos: Path) -> list[torch.Tensor]:
    files = sorted(photos.rglob("*.jpg"))[:3]
    arrays = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in files]
    return [resized(one.contiguous(), 96, 160) for one in arrays]


@pytest.fixture(scope="module")
def classifier(shown: list[torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "classifier.safetensors"
    return write_model(path, "classification", "", shown, "test_resnet")


def types_of(folder: Path, name: str) -> list[str]:
    import openvino

    return [node.get_type_name() for node in openvino.Core().read_model(folder / f"{name}.xml").get_ops()]


def test_a_detector_in_int8(shown: list[torch.Tensor], photos: Path, tmp_path: Path) -> None:
    """Both stages are quantized, and its objects are those of fp32 roughly."""
    path = write_model(tmp_path / "model.safetensors", "detection", "mask_rcnn", shown, "test_resnet")
    out = tmp_path / "int8"
    found = fishnet.export(str(path), str(out), precision="int8", calibration=str(photos), verify=2)
    assert found.description["precision"] == "int8"
    assert found.difference.images == 2
    for name in ("dense", "box", "mask"):
        assert "FakeQuantize" in types_of(out, name) or any("i8" in kind for kind in types_of(out, name))
    answers = Predictor(out, score=0.06)(sorted(photos.rglob("*.jpg"))[0])
    assert len(answers["masks"]) == len(answers["scores"]) > 0


def test_last_layers_are_those_before_the_outputs(shown: list[torch.Tensor], tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", "detection", "mask_rcnn", shown, "test_resnet")
    network, card = load_model(path)
    counts = {}
    for name, part in parts_of(network, card).items():
        model = to_openvino(trace(part), part)
        layers = last_layers(model)
        assert set(layers) <= {node.get_friendly_name() for node in model.get_ops()}
        counts[name] = len(layers)
    assert counts == {"dense": 10, "box": 2, "mask": 1}  # objectness and deltas of five levels


def test_accuracy_control_measures_the_metric(
    shown: list[torch.Tensor], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []
    measure = AccuracyControl.measure
    monkeypatch.setattr(AccuracyControl, "measure", lambda *args: measured.append(measure(*args)) or measured[-1])
    path = write_model(tmp_path / "model.safetensors", "detection", "retinanet", shown, "test_resnet", ["person"])
    found = fishnet.export(
        str(path), str(tmp_path / "int8"), precision="int8", calibration=str(photos), data=str(photos.parent),
        max_drop=1.0, verify=2,
    )  # fmt: skip
    accuracy = found.description["accuracy"]
    assert accuracy["metric"] == "box_ap"
    assert len(measured) <= 5  # not once per image
    own = fishnet.evaluate(str(path), str(photos.parent), workers=0, device="cpu").metrics["box_ap"]
    assert accuracy["before"] == pytest.approx(own, abs=1e-3)
    int8 = fishnet.evaluate(str(tmp_path / "int8"), str(photos.parent), workers=0).metrics["box_ap"]
    assert accuracy["after"] == pytest.approx(int8, abs=1e-3)
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["accuracy"] == accuracy


@pytest.mark.parametrize(("smaller", "after", "exceeded"), [
    (False, 0.95, False), (False, 0.7, True), (False, math.nan, True),
    (True, 0.7, False), (True, 0.95, True), (True, math.nan, True),
])  # fmt: skip
def test_smaller_is_better_for_some_metrics(smaller: bool, after: float, exceeded: bool) -> None:
    control = AccuracyControl(0.01, "metric", cast("AnyTask", None), [], smaller)
    assert control.exceeded(0.9, after) == exceeded


class TestBadInput:
    def test_no_calibration_images(self, classifier: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="int8 needs --calibration DIR"):
            fishnet.export(str(classifier), str(tmp_path / "out"), precision="int8")

    def test_calibration_of_another_precision(self, classifier: Path, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--calibration is for --precision int8"):
            fishnet.export(str(classifier), str(tmp_path / "out"), calibration=str(photos))

    def test_too_few_images(self, classifier: Path, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "few").mkdir()
        for path in sorted(photos.rglob("*.jpg"))[:3]:
            (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
        with pytest.raises(UsageError, match="has 3 images: give at least 8"):
            fishnet.export(str(classifier), str(tmp_path / "out"), precision="int8", calibration=str(tmp_path / "few"))

    def test_an_unreadable_image(self, classifier: Path, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "bad").mkdir()
        for number in range(9):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "bad" / f"{number}.png")
        (tmp_path / "bad" / "4.png").write_text("no image")
        with pytest.raises(FishnetError, match=r"4\.png: it is not an image"):
            fishnet.export(
                str(classifier), str(tmp_path / "out"), precision="int8", calibration=str(tmp_path / "bad"),
                images=str(photos),
            )  # fmt: skip

    def test_another_format(self, classifier: Path, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="int8 is for --format openvino"):
            fishnet.export(str(classifier), str(tmp_path / "out"), "onnx", "int8", calibration=str(photos))
