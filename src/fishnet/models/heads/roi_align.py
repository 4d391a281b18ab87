"""RoIAlign on CPUs as sums of weighted pixels, on all threads; torchvision's on other devices.

RoIAlign (arXiv 1703.06870) is linear in the map: a bin is a weighted sum of pixels, whose places and weights depend on
the regions only. In channels-last memory a pixel is a vector of all channels, so forward and backward pass are sums of
vectors, as in bags of embeddings. torchvision's backward pass on CPUs runs on one thread, pixel by pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as torchvision_roi_align

from fishnet.models.heads.types import Maps, Size
from fishnet.models.sorting import argsort


class _Sums(NamedTuple):
    """The bins of regions as sums: `terms` successive entries per bin, bins in the order (region, row, column)."""

    pixels: Tensor
    """Row of each term in the table of pixels (N H W, C), int32."""
    weights: Tensor
    """Weight of each term."""
    terms: int


class _Pooling(NamedTuple):
    """Settings of RoIAlign on one map."""

    size: tuple[int, int]
    scale: float
    samples: int
    aligned: bool


def roi_align(
    x: Tensor,
    regions: Tensor,
    size: int | tuple[int, int],
    scale: float = 1.0,
    samples: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Return the pooled maps of regions (R, C, size, size); equal to `torchvision.ops.roi_align`.

    Args:
        x: Maps (N, C, H, W).
        regions: Index of the image and x1 y1 x2 y2 in pixels of the image (R, 5).
        size: Height and width of the pooled maps.
        scale: Size of the map relative to that of the image.
        samples: Sampling points per bin in each direction; -1 selects their number by the size of the region.
        aligned: Whether coordinates are shifted by half a pixel of the map.
    """
    size = (size, size) if isinstance(size, int) else size
    if samples < 1 or not _own(x):
        return torchvision_roi_align(x, regions, size, scale, samples, aligned)
    levels = regions.new_zeros(len(regions), dtype=torch.int64)
    return _pooled([x], regions, levels, [_Pooling(size, scale, samples, aligned)])


class MultiLevelRoIAlign(MultiScaleRoIAlign):
    """RoIAlign from the levels of a pyramid, as torchvision's: the size of a region determines its level."""

    def forward(self, x: Maps, boxes: list[Tensor], image_shapes: list[Size]) -> Tensor:
        """Return the pooled maps of all regions (R, C, size, size).

        Args:
            x: Maps by name; those that are not in `featmap_names` are not used.
            boxes: Regions of each image (R_i, 4): x1 y1 x2 y2 in pixels.
            image_shapes: Height and width of each image; used to find the scales if they are not set.
        """
        maps = [value for name, value in x.items() if name in self.featmap_names]
        if self.sampling_ratio < 1 or self.scales is None or self.map_levels is None or not _own(maps[0]):
            return super().forward(x, boxes, image_shapes)
        images = [torch.full_like(part[:, :1], index) for index, part in enumerate(boxes)]
        regions = torch.cat([torch.cat(images), torch.cat(boxes)], 1)
        # one level is never asked for, and torchvision's mapper warns of regions without any area
        levels = self.map_levels(boxes) if len(maps) > 1 else torch.zeros(len(regions), dtype=torch.int64)
        settings = [_Pooling(self.output_size, scale, self.sampling_ratio, False) for scale in self.scales]
        return _pooled(maps, regions, levels, settings)


def _own(x: Tensor) -> bool:
    """Return whether to compute on this device; exporters and compilers know torchvision's operator."""
    return x.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling()


def _pooled(maps: list[Tensor], regions: Tensor, levels: Tensor, settings: list[_Pooling]) -> Tensor:
    dtype = maps[0].dtype
    exact = [x if x.dtype == torch.float64 else x.float() for x in maps]
    with torch.autocast("cpu", enabled=False):
        pooled: Tensor = _RoIAlign.apply(regions.to(exact[0].dtype), levels, settings, *exact)
    return pooled.to(dtype)


class _Context(FunctionCtx):
    """What the forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    shapes: list[torch.Size]
    terms: list[int]
    needs_input_grad: tuple[bool, ...]


class _RoIAlign(torch.autograd.Function):
    """Regions, levels, settings and maps -> pooled maps."""

    @staticmethod
    def forward(ctx: _Context, regions: Tensor, levels: Tensor, settings: list[_Pooling], *maps: Tensor) -> Tensor:
        rows, columns = settings[0].size
        channels = maps[0].shape[1]
        pooled = maps[0].new_empty(len(regions), rows, columns, channels)
        kept: list[Tensor] = []
        ctx.shapes, ctx.terms = [x.shape for x in maps], []
        for level, (x, setting) in enumerate(zip(maps, settings, strict=False)):
            places = torch.where(levels == level)[0]
            sums = _sums(x.shape, regions[places], setting)
            bins = _bags(x.permute(0, 2, 3, 1).reshape(-1, channels), sums.pixels, sums.weights, sums.terms)
            pooled[places] = bins.view(-1, rows, columns, channels)
            kept += [places, sums.pixels, sums.weights]
            ctx.terms.append(sums.terms)
        ctx.save_for_backward(*kept)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.permute(0, 2, 3, 1)
        found: list[Tensor | None] = [None, None, None]
        for level, (shape, terms) in enumerate(zip(ctx.shapes, ctx.terms, strict=True)):
            if not ctx.needs_input_grad[3 + level]:
                found.append(None)
                continue
            places, pixels, weights = ctx.saved_tensors[3 * level : 3 * level + 3]
            n, channels, height, width = shape
            order = argsort(pixels)
            counts = torch.bincount(pixels, minlength=n * height * width)
            starts = (counts.cumsum(0) - counts).to(torch.int32)
            bins = gradient[places].reshape(-1, channels)
            own = (
                F.embedding_bag(
                    (order // terms).to(torch.int32), bins, starts, mode="sum", per_sample_weights=weights[order]
                )
                if len(bins)
                else gradient.new_zeros(len(starts), channels)
            )
            found.append(own.view(n, height, width, channels).permute(0, 3, 1, 2))
        return tuple(found)


def _bags(pixels: Tensor, places: Tensor, weights: Tensor, terms: int) -> Tensor:
    """Return the weighted sums of successive `terms` rows of a table."""
    if not len(places):
        return pixels.new_zeros(0, pixels.shape[1])
    starts = torch.arange(0, len(places), terms, dtype=torch.int32)
    return F.embedding_bag(places, pixels, starts, mode="sum", per_sample_weights=weights)


def _sums(shape: torch.Size, regions: Tensor, setting: _Pooling) -> _Sums:
    _, _, height, width = shape
    shift = 0.5 if setting.aligned else 0.0
    x1, y1, x2, y2 = (regions[:, 1:] * setting.scale - shift).unbind(1)
    rows, row_weights = _along(y1, y2, height, setting.size[0], setting)
    columns, column_weights = _along(x1, x2, width, setting.size[1], setting)
    first = (regions[:, 0].to(torch.int32) * height)[:, None, None]
    pixels = ((first + rows) * width)[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    return _Sums(pixels.flatten(), weights.flatten(), rows.shape[-1] * columns.shape[-1])


def _along(start: Tensor, end: Tensor, length: int, bins: int, setting: _Pooling) -> tuple[Tensor, Tensor]:
    """Return the pixels along one side of the map, and their weights, for each bin of each region (R, bins, 2 S)."""
    side = end - start
    if not setting.aligned:
        side = side.clamp(min=1)
    step = (side / bins)[:, None, None]
    index = torch.arange(bins, dtype=step.dtype)[:, None]
    point = torch.arange(setting.samples, dtype=step.dtype)
    places = start[:, None, None] + index * step + (point + 0.5) * step / setting.samples  # (R, bins, S)
    outside = (places < -1) | (places > length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    share = places - low
    pixels = torch.stack([low, (low + 1).clamp(max=length - 1)], -1).to(torch.int32)
    weights = torch.stack([1 - share, share], -1).masked_fill(outside[..., None], 0) / setting.samples
    return pixels.flatten(2), weights.flatten(2)
