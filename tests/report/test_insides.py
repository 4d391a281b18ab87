"""Pictures of what a trunk computes: against a singular value decomposition, on real networks, without padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan
from fishnet.models.network import Network
from fishnet.models.trunk import Taps
from fishnet.report.insides import PLACES, components, draw_insides, first_batch, strength


def network(name: str, *heads: str) -> Network:
    torch.manual_seed(0)
    plans = {"image": ClassifierPlan(num_classes=3), "pixel": PixelPlan(num_classes=3)}
    return build_network(Architecture(name, {head: plans[head] for head in heads})).eval()


def image(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


def drawn(model: Network, *images: Tensor) -> np.ndarray:
    with first_batch(model) as seen, torch.inference_mode():
        model(list(images))
    found = draw_insides(model, seen[0])
    assert found is not None
    return np.asarray(found).astype(int)


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    draw = np.random.default_rng(0)
    values = np.einsum("ck,khw->chw", draw.normal(size=(20, 4)) * [9, 5, 2, 0.1], draw.normal(size=(4, 12, 16))) + 7
    points = values.reshape(20, -1).T
    points = (points - points.mean(0)) / points.std(0)
    left, size, _ = np.linalg.svd(points, full_matrices=False)
    found = components(values).reshape(-1, 3)
    assert found.min() == 0
    assert found.max() == 1
    for place in range(3):
        inner = (found[:, place] > 0) & (found[:, place] < 1)  # what lies outside of the percentiles is cut off
        assert inner.mean() > 0.95
        score = left[inner, place] * size[place]
        assert abs(np.corrcoef(score, found[inner, place])[0, 1]) == pytest.approx(1, abs=1e-9)
    # signs belong to the weights, not to the values: they do not turn from one image to the next
    assert np.allclose(components(-values).reshape(-1, 3), 1 - found)


def test_strength_is_the_distance_to_the_mean_of_the_image() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(8, 10, 10)) + 100  # a large common value does not count
    values[:, 3, 4] += 20
    found = strength(values)
    assert found.shape == (10, 10)
    assert np.unravel_index(found.argmax(), found.shape) == (3, 4)
    expected = np.linalg.norm(values - values.mean((1, 2))[:, None, None], axis=0)
    assert np.array_equal(np.argsort(found[found < 1]), np.argsort(expected[found < 1]))


def test_maps_without_differences_are_flat() -> None:
    for values in (np.full((5, 4, 4), 3.0), np.ones((5, 1, 1)), np.zeros((2, 3, 3))):
        assert (components(values) == 0.5).all()
        assert (strength(values) == 0).all()
    one = np.zeros((1, 2, 2))
    one[0, 0, 0] = 1
    assert np.ptp(components(one)[..., 0]) == 1
    assert (components(one)[..., 1:] == 0.5).all()  # one channel has one component


@pytest.mark.parametrize("heads", [("image",), ("pixel",), ("image", "pixel")])
def test_every_stage_of_a_fish_is_drawn(heads: tuple[str, ...]) -> None:
    model = network("fishnet_nano", *heads)
    with torch.inference_mode():
        maps = model.trunk.named_maps(torch.randn(1, 3, 64, 96))
    assert set(maps) == set(PLACES)
    assert maps["b3"].shape[-2:] == maps["stem"].shape[-2:] == (16, 24)
    assert maps["h3"].shape[-2:] == maps["t3"].shape[-2:] == (2, 3)
    picture = drawn(model, image())
    assert picture.shape[0] > 3 * 85
    assert picture.shape[1] > 4 * 2 * 128
    assert np.array_equal(picture, drawn(model, image()))
    assert not np.array_equal(picture, drawn(model, image().flip(2)))
    colorful = np.ptp(picture, axis=2) > 60
    assert colorful.mean() > 0.2


@pytest.mark.parametrize(("taps", "parts"), [("head", 3), ("body", 2), ("tail", 1)])
def test_a_trunk_has_a_row_per_part_that_it_runs(taps: Taps, parts: int) -> None:
    torch.manual_seed(0)
    plan = {"pixel": PixelPlan(num_classes=3)}
    model = build_network(Architecture("fishnet_nano", plan, taps=taps)).eval()
    picture = draw_insides(model, [image()])
    assert picture is not None
    row = round(128 * 64 / 96) + 20 + 2 * 6
    assert picture.height - parts * row == drawn(network("fishnet_nano", "pixel"), image()).shape[0] - 3 * row


def test_the_image_is_shown_without_its_padding() -> None:
    model = network("fishnet_nano", "pixel")
    photo = (255 * image(50, 70)).round().byte()
    alone = draw_insides(model, [photo])
    assert alone is not None
    size = 128, round(128 * 50 / 70)
    shown = np.asarray(alone.crop((70, 10, 70 + size[0], 10 + size[1]))).astype(int)
    expected = Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((140, 100), Image.Resampling.NEAREST)
    assert np.abs(shown - np.asarray(expected.resize(size, Image.Resampling.BICUBIC)).astype(int)).max() <= 2
    batch, _ = model.batcher([photo, image(128, 128)])
    assert batch.shape == (2, 3, 128, 128)
    padded = draw_insides(model, batch)  # a fish pools globally: its maps differ, but not the image
    assert padded is not None
    assert padded.size == alone.size
    assert np.array_equal(np.asarray(padded)[:100, :200], np.asarray(alone)[:100, :200])


@pytest.mark.parametrize(("name", "heads"), [("resnet18", ("pixel",)), ("resnet18", ("image",))])
def test_other_trunks_have_four_maps(name: str, heads: tuple[str, ...]) -> None:
    model = network(name, *heads)
    with torch.inference_mode():
        maps = model.trunk.named_maps(torch.randn(1, 3, 64, 64))
    assert [tuple(values.shape[-2:]) for values in maps.values()] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert [values.shape[1] for values in maps.values()] == [64, 128, 256, 512]
    assert drawn(model, image(64, 64)).shape[1] > 4 * 2 * 128
