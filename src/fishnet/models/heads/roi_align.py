"""RoIAlign over the levels of a pyramid (He et al., arXiv 1703.06870), with a fast gradient on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper, initLevelMapper

from fishnet.models.heads.types import Maps, Size

_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
"""A region of 224x224 pixels belongs to the level of stride 16 (Lin et al., arXiv 1612.03144, equation 1)."""


class RoIAlign(nn.Module):
    """Pool regions to P x P bins from the level that fits their size, by bilinear interpolation at `ratio`^2 points per
    bin, whose mean is taken.

    Equal to `torchvision.ops.MultiScaleRoIAlign` with known strides. torchvision adds up the gradient of the maps
    point by point in one thread. On the CPU it is computed from matrix products here: interpolation is separable, so
    that a region is a product of its rows, its window of the map and its columns.

    Args:
        names: Names of the maps, the finest first.
        strides: Their strides in pixels.
        size: P.
        ratio: Points per bin in each direction.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], size: int, ratio: int = 2) -> None:
        super().__init__()
        self.names, self.strides, self.size, self.ratio = tuple(names), tuple(strides), size, ratio
        finest, coarsest = int(math.log2(strides[0])), int(math.log2(strides[-1]))
        mapper = initLevelMapper(finest, coarsest, _CANONICAL_SIDE, _CANONICAL_LEVEL)
        self.level_of = cast(LevelMapper, mapper)

    def forward(self, maps: Maps, boxes: list[Tensor], sizes: Sequence[Size] = ()) -> Tensor:
        """Return the features of all regions, (R, C, P, P) in the order of `boxes`.

        Args:
            maps: Maps (N, C, H, W) by name, all with the same number of channels; others than `names` are ignored.
            boxes: Regions of each image, (r, 4): x1 y1 x2 y2 in pixels of the batch.
            sizes: Not used; poolers of torchvision take the sizes of the images here.
        """
        levels = [maps[name] for name in self.names]
        numbers = torch.cat([boxes[0].new_full((len(found), 1), image) for image, found in enumerate(boxes)])
        regions = torch.cat([numbers, torch.cat(boxes)], 1)
        level_of = self.level_of(boxes) if len(levels) > 1 else torch.zeros_like(numbers[:, 0])
        found = levels[0].new_zeros(len(regions), levels[0].shape[1], self.size, self.size)
        for number, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            places = torch.where(level_of == number)[0]
            found[places] = pool(level, regions[places], 1 / stride, self.size, self.ratio).to(found.dtype)
        return found


def pool(level: Tensor, regions: Tensor, scale: float, size: int, ratio: int) -> Tensor:
    """Return the features (R, C, P, P) of regions of one map, as `torchvision.ops.roi_align` does.

    Args:
        level: Map (N, C, H, W).
        regions: Index of the image and x1 y1 x2 y2 in pixels, (R, 5).
        scale: Cells of the map per pixel.
        size: P.
        ratio: Points per bin in each direction.
    """
    if level.device.type != "cpu" or not level.requires_grad or not torch.is_grad_enabled():
        return roi_align(level, regions, size, scale, ratio)
    exact = level if level.dtype == torch.float64 else level.float()
    return _PoolOnCpu.apply(exact, regions.to(exact.dtype), scale, size, ratio)


class _PoolOnCpu(Function):
    """torchvision's RoIAlign with a gradient of matrix products."""

    if TYPE_CHECKING:

        @classmethod
        def apply(cls, level: Tensor, regions: Tensor, scale: float, size: int, ratio: int) -> Tensor:
            """Run `forward`."""

    @staticmethod
    def forward(ctx: FunctionCtx, level: Tensor, regions: Tensor, scale: float, size: int, ratio: int) -> Tensor:
        """Return the features of the regions."""
        ctx.save_for_backward(regions)
        context = cast(_Context, ctx)
        context.shape, context.scale, context.size, context.ratio = level.shape, scale, size, ratio
        return roi_align(level, regions, size, scale, ratio)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the map."""
        (regions,) = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        total = grad.new_zeros(images, height, width, channels)
        grad = grad.permute(0, 2, 3, 1).contiguous()
        corners = regions[:, 1:] * ctx.scale
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=1)
        across = _axis(corners[:, 0], sides[:, 0], ctx.size, ctx.ratio, width)
        down = _axis(corners[:, 1], sides[:, 1], ctx.size, ctx.ratio, height)
        for places in _by_width(across.side):
            side = int(across.side[places].max())
            strips = across.weights(places, side).transpose(1, 2)[:, None] @ grad[places]  # (n, P, side, C)
            windows = zip(
                down.weights(places, int(down.side[places].max())).transpose(1, 2),
                regions[places, 0].int().tolist(),
                *(values[places].tolist() for values in (down.start, down.side, across.start, across.side)),
                strict=True,
            )
            for strip, (rows, image, top, tall, left, wide) in zip(strips, windows, strict=True):
                window = total[image, top : top + tall, left : left + wide].flatten(1)
                window.addmm_(rows[:tall], strip[:, :wide].flatten(1))
        return total.permute(0, 3, 1, 2), None, None, None, None


class _Context(FunctionCtx):
    """What the gradient needs to know of the forward pass."""

    saved_tensors: tuple[Tensor, ...]
    shape: torch.Size
    scale: float
    size: int
    ratio: int


def _by_width(sides: Tensor) -> Iterator[Tensor]:
    """Yield the indices of regions with windows of similar width, which share a matrix product."""
    classes, class_of = sides.float().log2().ceil().unique(return_inverse=True)
    for number in range(len(classes)):
        yield torch.where(class_of == number)[0]


class _Axis(NamedTuple):
    """Interpolation along one axis of a map."""

    start: Tensor
    """First cell of the window of each region, int64 (R,)."""
    side: Tensor
    """Number of cells of the window, int64 (R,)."""
    low: Tensor
    """Cell before each point, int64 (R, P, points)."""
    high: Tensor
    """Cell behind each point."""
    share: Tensor
    """Weight of `high`, float (R, P, points)."""
    inside: Tensor
    """1 / points for points on the map, 0 for others."""

    def weights(self, places: Tensor, side: int) -> Tensor:
        """Return the weights of the cells of the windows of some regions, float (n, P, side)."""
        start = self.start[places, None, None]
        found = self.share.new_zeros(len(places), self.low.shape[1], side)
        inside, share = self.inside[places], self.share[places]
        found.scatter_add_(2, self.low[places] - start, inside * (1 - share))
        return found.scatter_add_(2, self.high[places] - start, inside * share)


def _axis(first: Tensor, extent: Tensor, size: int, ratio: int, cells: int) -> _Axis:
    """Return the interpolation along one axis.

    Args:
        first: Left or upper border of the regions in cells, (R,).
        extent: Width or height of the regions in cells, (R,).
        size: Bins per region.
        ratio: Points per bin.
        cells: Width or height of the map.
    """
    side = (extent / size)[:, None, None]
    bins, points = (torch.arange(count, dtype=first.dtype) for count in (size, ratio))
    # in torchvision's order, so that both round alike
    points = (first[:, None, None] + bins[:, None] * side) + (points + 0.5) * side / ratio
    inside = ((points >= -1) & (points <= cells)).to(first.dtype) / ratio
    points = points.clamp(0, cells - 1)
    low = points.floor().long()
    high = (low + 1).clamp(max=cells - 1)
    start = low[:, 0, 0]
    return _Axis(start, high[:, -1, -1] - start + 1, low, high, points - low, inside)
