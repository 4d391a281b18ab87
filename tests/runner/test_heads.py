"""Decoders in NumPy against those of PyTorch, on the same outputs of networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fishnet.cards import HeadCard, ModelCard
from fishnet.deploy.parts import head_specs, parts_of
from fishnet.exported import ExportedRuntime
from fishnet.models.heads.types import Frame
from fishnet.models.network import Network
from fishnet.runner.engine import DENSE, Engine
from fishnet.runner.head import Arrays, Graph
from fishnet.runner.heads import head_of
from fishnet.runner.prepare import Preparation
from tests.deploy.networks import CLASSES, network_of, plans_of

DETECTORS = ["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "cascade_mask_rcnn", "retinanet", "fcos"]


def as_graph(module: nn.Module) -> Graph:
    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module(*[torch.from_numpy(value) for value in inputs.values()])
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def engine_of(network: Network, card: ModelCard) -> Engine:
    heads = {name: head_of(spec) for name, spec in head_specs(network, card).items()}
    graphs = {name: as_graph(part.module) for name, part in parts_of(network, card).items()}
    return Engine(
        Preparation("fit", 96, network.batcher.mean, network.batcher.std, longest=160, multiple=32), heads, graphs
    )


@pytest.mark.parametrize("kind", DETECTORS)
def test_detections_of_a_padded_batch(kind: str) -> None:
    """Outputs without ties, of two images that fill their batch in part."""
    generator = torch.Generator().manual_seed(1)
    shown = [torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)]
    network, architecture = network_of(plans_of("detection", kind), "test_resnet", shown)
    card = ModelCard("detection", architecture, {"region": HeadCard(list(CLASSES))}, 96)
    engine = engine_of(network, card)
    batch = torch.randn(2, 3, 128, 160, generator=generator)
    sizes = [(100, 150), (128, 97)]
    with torch.no_grad():
        raw = network.raw(batch)
        for name, value in raw["region"].items():
            if name.startswith(("objectness", "deltas", "cls_logits", "bbox")):
                value.copy_(torch.randn(value.shape, generator=generator))
        wanted = network.decode(raw, Frame((128, 160), sizes))["region"]
    own = {
        name: (value.permute(0, 2, 3, 1) if name.startswith("map_") else value).contiguous().numpy()
        for name, value in raw["region"].items()
        if name != "map_pool"
    }
    found = engine.decode({"region": own}, (128, 160), sizes)["region"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert isinstance(ours, dict)
        assert len(theirs["boxes"]) > 5
        assert ours.keys() == theirs.keys()
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        for name, atol in {"boxes": 1e-3, "scores": 1e-5, "masks": 1e-4, "keypoints": 0.05}.items():
            if name in theirs:
                assert ours[name].shape == theirs[name].shape
                assert np.allclose(ours[name], theirs[name], atol=atol)


def test_nothing_found() -> None:
    shown = [torch.zeros(3, 96, 96, dtype=torch.uint8)]
    for kind in ("mask_rcnn", "keypoint_rcnn", "cascade_rcnn", "fcos"):
        network, architecture = network_of(plans_of("detection", kind), "test_resnet", shown)
        card = ModelCard("detection", architecture, {"region": HeadCard(list(CLASSES))}, 96)
        engine = engine_of(network, card)
        raw = engine.raw(np.zeros((1, 3, 96, 96), np.float32))
        for name, values in raw["region"].items():
            if name.startswith(("cls", "bbox_ctr")):
                raw["region"][name] = np.full_like(values, -20)
        head = engine.heads["region"]
        if kind != "fcos":
            object.__setattr__(head, "score", 1.0)
        (found,) = head.decode(raw["region"], (96, 96), [(96, 96)], engine.graphs)
        assert isinstance(found, dict)
        assert {len(values) for values in found.values()} == {0}


def test_preparation_gives_the_bits_of_the_network(mini: Callable[[str], Path]) -> None:
    from PIL import Image

    from fishnet.config import NormalizeConfig, PreprocessConfig
    from fishnet.data.augmentation import resized
    from fishnet.data.classification.transforms import eval_transform
    from fishnet.models.network import Batcher

    mean, std = NormalizeConfig.mean, NormalizeConfig.std
    for path in sorted(mini("pennfudan").rglob("*.jpg"))[:4]:
        image = Image.open(path).convert("RGB")
        fit = Preparation("fit", 96, mean, std, longest=120, multiple=32)
        ours = fit.batch([fit(image)])[0]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        theirs = Batcher(mean, std, 32)([resized(pixels, 96, 120)])[0]
        assert np.array_equal(ours, theirs.numpy())
        square = Preparation("square", 64, mean, std, 0.875, "bicubic")
        config = PreprocessConfig(crop_pct=0.875, interpolation="bicubic")
        assert np.array_equal(square.batch([square(image)])[0][0], eval_transform(config, 64)(image).numpy())


def test_square_crops_are_those_of_torchvision(mini: Callable[[str], Path]) -> None:
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2

    for path in sorted(mini("pennfudan").rglob("*.jpg"))[:4]:
        image = Image.open(path).convert("RGB")
        for size, crop_pct in ((64, 0.875), (71, 0.9), (32, 1.0)):
            plain = v2.Compose(
                [v2.Resize(int(size / crop_pct + 1e-6), InterpolationMode.BILINEAR), v2.CenterCrop(size)]
            )
            ours = Preparation("square", size, (0.0,) * 3, (1.0,) * 3, crop_pct)(image)
            assert np.array_equal(ours, np.asarray(plain(image)))


def test_float_images_are_padded_as_pytorch_pads_them() -> None:
    """The graph takes multiples of 32 pixels only; predictions have the size of the images."""
    shapes = []

    def graph(inputs: Arrays) -> Arrays:
        shapes.append(inputs["images"].shape)
        return {"pixel_logits": inputs["images"][:, :2]}

    heads = {"pixel": head_of({"type": "pixel", "classes": ["a", "b"]})}
    preparation = Preparation("fit", 96, (0.0,) * 3, (1.0,) * 3, multiple=32)
    images = torch.rand(1, 3, 50, 70)
    (found,) = ExportedRuntime(Engine(preparation, heads, {DENSE: graph}))(images)["pixel"]
    assert shapes == [(1, 3, 64, 96)]
    assert torch.equal(torch.as_tensor(found), images[0, :2])


def test_a_name_of_a_head_may_begin_with_that_of_another() -> None:
    heads = {name: head_of({"type": "classifier", "classes": CLASSES}) for name in ("image", "image_2")}
    outputs = {"image_logits": np.zeros((1, 3)), "image_2_logits": np.ones((1, 3))}
    for names in (list(heads), list(reversed(heads))):
        preparation = Preparation("square", 32, (0.0,) * 3, (1.0,) * 3)
        engine = Engine(preparation, {name: heads[name] for name in names}, {DENSE: lambda _: outputs})
        found = engine.raw(np.zeros((1, 3, 32, 32), np.float32))
        assert {name: list(own) for name, own in found.items()} == {"image": ["logits"], "image_2": ["logits"]}
        assert found["image_2"]["logits"].all()
