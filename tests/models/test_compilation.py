"""Compiled networks answer and learn as they do eagerly; only trunk, necks and heads are compiled."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.commands.predict import predict
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.models.build import Architecture, build_network
from fishnet.models.compilation import CompiledRaw, compile_network
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network

CPU = torch.device("cpu")
PREPROCESS = PreprocessConfig()


def classifier() -> Network:
    torch.manual_seed(0)
    architecture = Architecture("resnet10t", {"image": ClassifierPlan(num_classes=3)}, {})
    return build_network(architecture, mean=PREPROCESS.mean, std=PREPROCESS.std).eval()


def detector() -> Network:
    torch.manual_seed(0)
    plan = RegionPlan(num_classes=2, preset="nano", sizes={"score": 0.0, "detections": 5})
    architecture = Architecture("resnet10t", {"region": plan}, {})
    return build_network(architecture, mean=PREPROCESS.mean, std=PREPROCESS.std).eval()


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def test_a_compiled_detector_finds_the_same_in_images_of_all_sizes() -> None:
    network = detector()
    plain, told = copy.deepcopy(network), list[str]()
    compile_network(network, CPU, told.append, backend="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for sizes in ([(64, 96), (64, 96)], [(96, 64)], [(128, 128), (64, 96), (64, 96)]):
            images = [torch.rand(3, *size, generator=generator) for size in sizes]
            for found, wanted in zip(network(images)["region"], plain(images)["region"], strict=True):
                for name, value in wanted.items():
                    torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
    assert 1 <= len(told) <= 3  # the second size makes it dynamic
    assert "compiled the network in" in told[0]
    assert "2 x 3 x 64 x 96" in told[0]
    assert network.raw.seconds > 0  # type: ignore[attr-defined]
    assert network.raw.graphs == len(told)  # type: ignore[attr-defined]  # one graph each: nothing is left out
    assert list(network.state_dict()) == list(plain.state_dict())


def test_a_compiled_network_learns_the_same_and_its_copies_are_their_own() -> None:
    network = classifier().train()
    plain = copy.deepcopy(network)
    compile_network(network, CPU, lambda text: None, backend="aot_eager")
    images, targets = torch.rand(4, 3, 64, 64), {"image": torch.tensor([0, 1, 2, 1])}

    def gradients(one: Network) -> list[Tensor]:
        torch.stack(list(one(images, targets).values())).sum().backward()
        return [parameter.grad for parameter in one.parameters() if parameter.grad is not None]

    for found, wanted in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    twin = copy.deepcopy(network).eval()
    assert isinstance(network.raw, CompiledRaw)
    assert not isinstance(twin.raw, CompiledRaw)
    with torch.no_grad():
        before = twin.raw(images)["image"]["logits"]
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin.raw(images)["image"]["logits"], before)


def test_a_missing_or_failing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UsageError, match=r"--compile needs a C\+\+ compiler, and there is no no-such-compiler: install"
    ):
        compile_network(classifier(), CPU, print)

    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("the backend is out of order\nwith details")

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: broken)
    network = classifier()
    compile_network(network, CPU, print, backend="broken")
    with pytest.raises(
        FishnetError, match=r"torch.compile failed: the backend is out of order; leave --compile out"
    ) as caught:
        network(torch.rand(1, 3, 64, 64))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_predict_compiles_with_a_real_compiler(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    architecture = Architecture("resnet10t", {"image": ClassifierPlan(num_classes=3)}, {})
    card = ModelCard("classification", architecture, {"image": HeadCard(list("abc"))}, 64, PREPROCESS)
    save_model(tmp_path / "model.safetensors", classifier(), card)
    Image.new("RGB", (80, 60), "orange").save(tmp_path / "a.png")
    model, photo = str(tmp_path / "model.safetensors"), [str(tmp_path / "a.png")]
    found = predict(model, photo, str(tmp_path / "compiled"), device="cpu", compile=True)
    assert "compiled the network in" in capsys.readouterr().out
    wanted = predict(model, photo, str(tmp_path / "eager"), device="cpu")
    scores = [[one["score"] for one in each.images[0]["predictions"]] for each in (found, wanted)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
