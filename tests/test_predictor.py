"""The predictor against the plain formula: (pixel / 255 - mean) / std, network, softmax or sigmoid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fishnet
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.models.blocks import Block
from fishnet.predictor import Predictor
from tests.models_on_disk import classifier_card, save_classifier

CLASSES = ["aéroplane", "big car", "bird", "cat", "deer", "dog", "frog"]
PREPROCESS = PreprocessConfig(crop_pct=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def small_network() -> nn.Module:
    torch.manual_seed(3)
    model = create_model("fishnet_nano", num_classes=len(CLASSES), stem_stride=1)
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    return model.eval()


def write_model(path: Path, network: nn.Module, **changes: Any) -> Path:
    options = {"stem_stride": 1}
    return save_classifier(path, network, classifier_card(CLASSES, options=options, preprocess=PREPROCESS, **changes))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_network()


@pytest.fixture(scope="module")
def model_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("single") / "model.safetensors", network)


@pytest.fixture(scope="module")
def multi_label_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("multi") / "model.safetensors", network, multi_label=True)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_the_network_is_fused(model_file: Path) -> None:
    network = Predictor(model_file, device="cpu").runtime.network
    assert isinstance(network.trunk.stem.norm1, nn.Identity)
    assert not any(isinstance(module, Block) for module in network.modules())


def logits_of(network: nn.Module, pixels: np.ndarray) -> Tensor:
    values = (pixels / 255.0 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    with torch.no_grad():
        return network(torch.from_numpy(values).float().permute(2, 0, 1)[None])[0]


def test_single_label_answer(model_file: Path, network: nn.Module, pixels: np.ndarray) -> None:
    found = Predictor(model_file, device="cpu")(pixels)
    scores = logits_of(network, pixels).softmax(0).numpy()
    order = np.argsort(-scores)[:5]
    assert found["indices"] == order.tolist()
    assert found["labels"] == [CLASSES[i] for i in order]
    assert found["scores"] == pytest.approx(scores[order].tolist(), abs=1e-5)
    everything = Predictor(model_file, device="cpu", top=100)(pixels)
    assert len(everything["labels"]) == len(CLASSES)
    assert sum(everything["scores"]) == pytest.approx(1, abs=1e-5)


def test_a_list_of_images_gives_a_list_of_answers(model_file: Path, pixels: np.ndarray) -> None:
    predictor = Predictor(model_file, device="cpu")
    other = 255 - pixels
    together, alone = predictor([pixels, other]), [predictor(pixels), predictor(other)]
    assert [answer["labels"] for answer in together] == [answer["labels"] for answer in alone]
    assert together[1]["scores"] == pytest.approx(alone[1]["scores"], rel=1e-4)
    assert predictor((pixels,)) == [predictor(pixels)]
    assert predictor([]) == []


def test_the_parts_of_a_model_serve_own_code(model_file: Path, network: nn.Module, pixels: np.ndarray) -> None:
    loaded, transform, classes, card = fishnet.load(model_file)
    assert classes == CLASSES
    assert card.task == "classification"
    assert not loaded.training
    with torch.no_grad():
        found = loaded(transform(Image.fromarray(pixels))[None])["image"][0]
    torch.testing.assert_close(found, logits_of(network, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_multi_label_answer(multi_label_file: Path, network: nn.Module, pixels: np.ndarray, threshold: float) -> None:
    found = Predictor(multi_label_file, device="cpu", threshold=threshold)(pixels)
    scores = logits_of(network, pixels).sigmoid().numpy()
    above = [i for i in np.argsort(-scores).tolist() if scores[i] > threshold]
    assert found["indices"] == above
    assert found["scores"] == pytest.approx(scores[above].tolist(), abs=1e-5)


def test_every_form_of_an_image_gives_the_same(model_file: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    predictor = Predictor(model_file, device="cpu")
    path = tmp_path / "an image é.png"
    Image.fromarray(pixels).save(path)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    opaque = np.dstack([pixels, np.full((32, 32), 255, np.uint8)])
    forms = [str(path), path, Image.open(path), pixels, planes, planes.float() / 255, opaque, Image.fromarray(opaque)]
    answers = predictor.batch(forms, batch_size=3)
    wanted = predictor(pixels)
    assert len(answers) == len(forms)
    for answer in answers:
        assert answer["indices"] == wanted["indices"]
        assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-6)


def test_grayscale_in_every_form(model_file: Path, pixels: np.ndarray) -> None:
    predictor = Predictor(model_file, device="cpu")
    gray = pixels[:, :, 0]
    wanted = predictor(np.repeat(gray[:, :, None], 3, axis=2))
    opaque = np.stack([gray, np.full_like(gray, 255)], axis=2)
    forms = [
        gray,
        gray[:, :, None],
        Image.fromarray(gray),
        torch.from_numpy(gray),
        torch.from_numpy(gray)[None],
        opaque,
    ]
    for answer in predictor.batch(forms):
        assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-6)


def test_transparent_pixels_are_white(model_file: Path, pixels: np.ndarray) -> None:
    predictor = Predictor(model_file, device="cpu")
    clear = np.dstack([pixels, np.zeros((32, 32), np.uint8)])
    assert predictor(clear)["scores"] == pytest.approx(predictor(np.full_like(pixels, 255))["scores"], abs=1e-6)


def test_a_given_image_is_left_as_it_was(model_file: Path, pixels: np.ndarray) -> None:
    before = pixels.copy()
    Predictor(model_file, device="cpu")(pixels)
    np.testing.assert_array_equal(pixels, before)


BROKEN = {
    "floats": (np.zeros((8, 8, 3)), "uint8, not float64"),
    "planes": (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) is not an image"),
    "empty": (np.zeros((0, 8, 3), np.uint8), "is not an image"),
    "normalized": (torch.full((3, 8, 8), -1.0), "between 0 and 1"),
    "not a number": (torch.full((3, 8, 8), float("nan")), "between 0 and 1"),
    "batch": (torch.zeros(1, 3, 8, 8), "is not an image"),
    "text file": (__file__, "it is not an image"),
    "absent": ("nowhere.jpg", "nowhere.jpg: there is no such file"),
    "number": (3, "a int is not an image"),
    "float pixels": (Image.new("F", (8, 8)), "floating-point pixels"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_image(model_file: Path, kind: str) -> None:
    image, message = BROKEN[kind]
    with pytest.raises(FishnetError, match=message):
        Predictor(model_file, device="cpu")(image)  # type: ignore[arg-type]


def test_bad_settings(model_file: Path, network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^top= must be at least 1"):
        Predictor(model_file, top=0)
    with pytest.raises(UsageError, match=r"^threshold= must be"):
        Predictor(model_file, threshold=2)
    gray = create_model("fishnet_nano", num_classes=len(CLASSES), in_chans=1, stem_stride=1)
    with pytest.raises(FishnetError, match=r"1 channels.*as RGB"):
        Predictor(write_model(tmp_path / "gray.safetensors", gray, in_chans=1))


def test_damaged_weights_give_no_answer(tmp_path: Path, pixels: np.ndarray) -> None:
    model = small_network()
    nn.init.constant_(model.get_classifier().bias, float("nan"))
    predictor = Predictor(write_model(tmp_path / "nan.safetensors", model), device="cpu")
    with pytest.raises(FishnetError, match="NaN or infinite"):
        predictor(pixels)


def test_a_timm_backbone_on_real_photos(mini: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("resnet10t", num_classes=3).eval()
    card = classifier_card(["a", "b", "c"], "resnet10t", preprocess=PREPROCESS)
    path = save_classifier(tmp_path / "m.safetensors", model, card)
    photos = sorted((mini("pets3") / "val").rglob("*.jpg"))[:5]
    predictor = Predictor(path, device="cpu")
    answers = predictor.batch(photos, batch_size=2)
    assert [len(answer["labels"]) for answer in answers] == [3] * 5
    for photo, answer in zip(photos, answers, strict=True):
        alone = predictor(photo)
        assert answer["indices"] == alone["indices"]
        assert answer["scores"] == pytest.approx(alone["scores"], abs=1e-5)
