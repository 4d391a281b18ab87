"""Detectors predict in batches, tiles included, and answer as for each image alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.cards import HeadCard, ModelCard
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.network import Images
from fishnet.tasks.base import TorchRuntime
from fishnet.tasks.detection.options import DetectionOptions
from fishnet.tasks.detection.task import DetectionTask


class Counting(TorchRuntime):
    """Notes how many images each call gets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[int] = []

    def __call__(self, images: Images) -> Mapping[str, Sequence[Any]]:
        self.calls.append(len(images))
        return super().__call__(images)


@pytest.fixture(scope="module")
def runtime_and_card() -> tuple[Counting, ModelCard]:
    torch.manual_seed(0)
    plan = RegionPlan("mask_rcnn", num_classes=3, preset="nano", sizes={"score": 0.0, "detections": 5})
    card = ModelCard(
        "detection", Architecture("fishnet_nano", {"region": plan}), {"region": HeadCard(["a", "b", "c"])}, 64
    )
    card.details["longest"] = 96
    return Counting(build_network(card.architecture).eval(), torch.device("cpu")), card


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in sizes]


@pytest.mark.parametrize("tile", [None, 64])
def test_a_batch_answers_as_its_images_alone(runtime_and_card: tuple[Counting, ModelCard], tile: int | None) -> None:
    runtime, card = runtime_and_card
    task = DetectionTask(card, DetectionOptions(score=0.0, tile=tile))
    prepared = [task.prepare(photo) for photo in photos((64, 80), (64, 80), (100, 70), (64, 80))]
    runtime.calls.clear()
    together = task.answer(runtime, prepared)
    tiles = sum(len(image.tiles) for image in prepared)
    assert sum(runtime.calls) == tiles
    assert max(runtime.calls) == 4, "no more tiles at once than images"
    alone = [task.answer(runtime, [image])[0] for image in prepared]
    for one, other in zip(together, alone, strict=True):
        assert one["labels"] == other["labels"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)
        assert len(one["masks"]) == len(other["masks"])
