"""RoIAlign against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from fishnet.models.heads.roi_align import RoIAlign, pool

STRIDES = (4, 8, 16, 32)


def some_maps(height: int, width: int, channels: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return maps of two images, those of every second level in channels-last order."""
    maps = {}
    for number, stride in enumerate(STRIDES):
        values = torch.randn(2, channels, -(-height // stride), -(-width // stride), dtype=dtype)
        order = torch.channels_last if number % 2 else torch.contiguous_format
        maps[str(number)] = values.contiguous(memory_format=order).requires_grad_()
    return {**maps, "pool": torch.randn(2, channels, 2, 2)}


def some_boxes(height: int, width: int, count: int) -> Tensor:
    """Return boxes of all sizes; some are partly or wholly outside of the image, some are points."""
    corner = (torch.rand(count, 2) * 1.4 - 0.2) * torch.tensor([width, height])
    sides = torch.rand(count, 1) ** 3 * torch.rand(count, 2) * torch.tensor([width, height]) * 1.5
    sides[: count // 8] = 0
    return torch.cat([corner, corner + sides], 1)


def reference(size: int) -> MultiScaleRoIAlign:
    found = MultiScaleRoIAlign(["0", "1", "2", "3"], size, sampling_ratio=2)
    found.scales, found.map_levels = [1 / stride for stride in STRIDES], initLevelMapper(2, 5)
    return found


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize(("height", "width"), [(128, 160), (333, 97), (640, 800)])
def test_features_and_gradients_are_those_of_torchvision(size: int, height: int, width: int) -> None:
    torch.manual_seed(size)
    maps = some_maps(height, width)
    boxes = [some_boxes(height, width, 60), some_boxes(height, width, 1)]
    found, gradients = [], []
    for module in (reference(size), RoIAlign(["0", "1", "2", "3"], STRIDES, size)):
        found.append(module(maps, boxes, [(height, width)] * 2))
        weights = torch.linspace(-1, 1, found[-1].numel()).view(found[-1].shape).sin()
        gradients.append(torch.autograd.grad((found[-1] * weights).sum(), [maps[name] for name in "0123"]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert gradients[0][0].abs().sum() > 0
    for expected, own in zip(*gradients, strict=True):
        assert (own - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    level = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[0, 1, 2, 30, 21], [1, -9, -9, 50, 60], [1, 4, 4, 4, 4.0]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda one: pool(one, regions, 1 / 8, 3, 2), level)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_images_without_regions(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = some_maps(96, 96)
    found = RoIAlign(["0", "1", "2", "3"], STRIDES, 7)(maps, [some_boxes(96, 96, count) for count in counts])
    assert found.shape == (sum(counts), 5, 7, 7)
    found.sum().backward()
    assert maps["0"].grad is not None
    assert maps["0"].grad.isfinite().all()


def test_one_level_and_half_precision() -> None:
    """Points are placed and weighted in fp32, whatever the maps are."""
    torch.manual_seed(0)
    level = torch.randn(1, 4, 200, 300).bfloat16()
    boxes = [some_boxes(800, 1200, 20)]
    expected_in, found_in = (level.clone().requires_grad_() for _ in range(2))
    plain = MultiScaleRoIAlign(["0"], 7, 2)
    plain.scales, plain.map_levels = [1 / 4], initLevelMapper(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain({"0": expected_in}, boxes, [(800, 1200)])
        found = RoIAlign(["0"], (4,), 7)({"0": found_in}, boxes)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    expected.float().sin().sum().backward()
    found.float().sin().sum().backward()
    assert expected_in.grad is not None
    assert found_in.grad is not None
    torch.testing.assert_close(found_in.grad, expected_in.grad, rtol=1e-2, atol=1e-2)
