"""Pictures of what the stages of a trunk see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan
from fishnet.report.insides import components, draw_insides


def test_components_are_those_of_numpy() -> None:
    value = torch.randn(6, 7, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)[:, None, None]
    found = components(value)
    positions = value.reshape(6, -1).T.double().numpy()
    positions = (positions - positions.mean(0)) / positions.std(0)
    values, vectors = np.linalg.eigh(positions.T @ positions)
    for place in range(3):
        direction = vectors[:, np.argsort(-values)[place]]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        line = positions @ direction
        low, high = np.percentile(line, [2, 98])
        expected = np.round(255 * ((line - low) / (high - low)).clip(0, 1)).astype(int)
        assert np.abs(expected - found[..., place].reshape(-1).astype(int)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 1, 1), (5, 3, 2)])
def test_maps_of_few_channels_or_positions_are_gray_where_nothing_differs(shape: tuple[int, int, int]) -> None:
    assert components(torch.ones(shape)).shape == (*shape[1:], 3)


@pytest.mark.parametrize(("taps", "rows"), [("head", 3), ("body", 2), ("tail", 1)])
def test_every_part_of_the_trunk_has_a_row(taps: str, rows: int) -> None:
    torch.manual_seed(0)
    network = build_network(Architecture("fishnet_nano", {"pixel": PixelPlan()}, taps=taps)).eval()  # type: ignore[arg-type]
    image = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    one, again = draw_insides(network, [image]), draw_insides(network, [image])
    assert one is not None
    assert again is not None
    assert np.array_equal(np.array(one), np.array(again))
    height = np.array(one).shape[0]
    assert height > rows * 100
    photo = np.array(one)[28 : 28 + 123, 8 : 8 + 176]
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((176, 123), Image.Resampling.BICUBIC)
    assert np.abs(photo.astype(int) - np.array(expected)).max() <= 2


def test_a_trunk_that_does_not_tell_its_stages_apart_has_no_picture() -> None:
    network = build_network(Architecture("resnet18", {"image": ClassifierPlan(num_classes=3)})).eval()
    assert draw_insides(network, torch.zeros(1, 3, 64, 64)) is None
