"""RoIAlign against torchvision's operator, forward and backward."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as wanted_roi_align

from fishnet.models.heads.roi_align import MultiLevelRoIAlign, roi_align

CORNERS = torch.tensor(
    [
        [0, 0, 0, 160, 120],  # the whole image
        [1, -30, -20, 20, 30],  # beyond its upper left corner
        [1, 120, 90, 400, 300],  # beyond the lower right one
        [0, 500, 500, 600, 600],  # outside
        [0, 17.3, 9.1, 17.3, 9.1],  # without area
        [1, 60, 50, 40, 20],  # turned around
        [0, 159.9, 119.9, 160, 120],
        [1, 3, 3, 4.5, 110],
    ]
)


def regions_at_random(count: int, width: int, height: int, images: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    first = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) / 2
    return torch.cat([torch.randint(images, (count, 1), generator=generator).float(), first, first + side], 1)


def both(values: Tensor, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return pooled maps and the gradient of the map for a random gradient of theirs."""
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((values * weights.to(values)).sum(), x)
    return values.detach(), gradient


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("size", [7, (14, 5)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_equal_to_torchvision(
    aligned: bool, samples: int, size: int | tuple[int, int], memory: torch.memory_format
) -> None:
    x = torch.randn(2, 5, 30, 40, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=memory)
    x.requires_grad_()
    regions = torch.cat([CORNERS, regions_at_random(30, 160, 120, 2)])
    wanted = both(wanted_roi_align(x, regions, size, 0.25, samples, aligned), x)
    found = both(roi_align(x, regions, size, 0.25, samples, aligned), x)
    for a, b in zip(wanted, found, strict=True):
        assert float((a - b).abs().max() / a.abs().max()) < 1e-5


def test_gradients_in_float64() -> None:
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    regions = regions_at_random(5, 7, 6, 2).double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, regions, 3, 1.0, 2), x)


def pools(levels: int) -> tuple[MultiScaleRoIAlign, MultiLevelRoIAlign, OrderedDict[str, Tensor]]:
    names = [str(level) for level in range(levels)]
    wanted, found = (kind(names, 7, 2) for kind in (MultiScaleRoIAlign, MultiLevelRoIAlign))
    generator = torch.Generator().manual_seed(2)
    maps = OrderedDict(
        (name, torch.randn(2, 6, 64 >> level, 96 >> level, generator=generator).requires_grad_())
        for level, name in enumerate(names)
    )
    maps["pool"] = torch.randn(2, 6, 4, 6)  # a level that regions are not pooled from
    wanted(maps, [CORNERS[:1, 1:]] * 2, [(256, 384)] * 2)  # finds the scales
    found.scales, found.map_levels = wanted.scales, wanted.map_levels
    return wanted, found, maps


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("counts", [(40, 25), (12, 0), (0, 0)])
def test_levels_of_regions(levels: int, counts: tuple[int, int]) -> None:
    theirs, ours, maps = pools(levels)
    boxes = [regions_at_random(count, 300, 200, 1)[:, 1:] for count in counts]
    boxes[0] = torch.cat([boxes[0], torch.tensor([[0, 0, 384, 256], [5, 5, 12, 14.0]])]) if counts[0] else boxes[0]
    used = list(maps.values())[:levels]
    results = []
    for pool in (theirs, ours):
        pooled = pool(maps, boxes, [(256, 384)] * 2)
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
        results.append([pooled, *torch.autograd.grad((pooled * weights).sum(), used)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(a.detach().abs().max()) if a.numel() else 1))


def test_half_precision_is_pooled_in_float32() -> None:
    theirs, ours, maps = pools(4)
    half = OrderedDict((name, value.detach().bfloat16()) for name, value in maps.items())
    boxes = [regions_at_random(9, 300, 200, 1)[:, 1:]] * 2
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(half, boxes, [(256, 384)] * 2)
    wanted = theirs(OrderedDict((name, value.float()) for name, value in half.items()), boxes, [(256, 384)] * 2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16()) or float((found.float() - wanted).abs().max()) < 0.02


def test_the_operator_of_torchvision_does_not_run_on_the_cpu() -> None:
    _, ours, maps = pools(4)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        ours(maps, [regions_at_random(9, 300, 200, 1)[:, 1:]] * 2, [(256, 384)] * 2).sum().backward()
    names = {event.key for event in events.key_averages()}
    assert not any("roi_align" in name for name in names)


def test_traces_take_the_operator_that_exporters_know() -> None:
    x = torch.randn(1, 3, 20, 20)
    regions = regions_at_random(3, 20, 20, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        traced = torch.jit.trace(lambda x, regions: roi_align(x, regions, 7, 1.0, 2), (x, regions))
    assert "roi_align" in str(traced.graph)
