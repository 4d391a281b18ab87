"""Decoders of the pixel head: maps of strides 4 to 32 -> one map of stride 4, from which pixels are classified.

A decoder takes its maps by their order, the finest first, and resizes to the sizes that it finds, so that images of any
size work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from fishnet.models.norms import groups_of
from fishnet.models.shared_norm import SharedBatchNorm2d


class DecoderNorm(SharedBatchNorm2d):
    """BatchNorm over the batches of all processes that falls back on its running statistics.

    This applies in training with fewer than two values per channel: after global pooling of a single image,
    or if no image of the batch has a label map.
    """

    FEWEST = 2


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Return a convolution that keeps the size of the map, BatchNorm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, DecoderNorm(out_channels), nn.ReLU())


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, C, H, W) resized to another height and width, bilinear with align_corners=False."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SummedProjections(nn.Module):
    """A 1x1 convolution per level, upsampled to the finest level and summed; then BatchNorm and ReLU.

    Since upsampling and sums are linear, this is a 1x1 convolution of all levels concatenated at stride 4, at a
    fraction of its memory and its multiply-adds.

    Args:
        channels: Channels of each level.
        width: Channels of the output.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(c, width, 1, bias=False) for c in channels])
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        self.norm, self.relu = DecoderNorm(width), nn.ReLU()

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return one map (N, width, H, W) of the size of the finest level."""
        levels = [layer(x) for layer, x in zip(self.layers, maps, strict=True)]
        size = levels[0].shape[-2:]
        return self.relu(self.norm(torch.stack([resized(level, size) for level in levels]).sum(0)))


class FishDecoder(nn.Module):
    """Light decoder for trunks whose stride-4 map is deep already, as that of a FishNet.

    fused = ReLU(BN(sum_i up(P_i x_i))) with P_i a 1x1 convolution; then `layers` 3x3 convolutions with BN and ReLU.

    Args:
        channels: Channels of each level.
        width: Channels of the projections and of the output.
        layers: Number of 3x3 convolutions.
    """

    def __init__(self, channels: Sequence[int], width: int, layers: int) -> None:
        super().__init__()
        self.fuse = SummedProjections(channels, width)
        self.refine = nn.Sequential(*[conv_norm_relu(width, width, 3) for _ in range(layers)])
        self.out_channels = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the map of stride 4 that is classified."""
        return self.refine(self.fuse(maps))


class HypercolumnDecoder(nn.Module):
    """Hypercolumns (arXiv 1411.5752): every pixel is classified by its features of all levels, without its neighbors.

    A perceptron with `layers` + 1 hidden layers at every position, on all levels upsampled to stride 4.

    Args:
        channels: Channels of each level.
        width: Channels of the hidden layers.
        layers: Number of 1x1 convolutions after the fusion.
    """

    def __init__(self, channels: Sequence[int], width: int, layers: int) -> None:
        super().__init__()
        self.fuse = SummedProjections(channels, width)
        self.hidden = nn.Sequential(*[conv_norm_relu(width, width, 1) for _ in range(layers)])
        self.out_channels = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the map of stride 4 that is classified."""
        return self.hidden(self.fuse(maps))


class FPNDecoder(nn.Module):
    """Semantic FPN: Kirillov et al., Panoptic Feature Pyramid Networks (arXiv 1901.02446), section 3.1.

    A feature pyramid of 2 `width` channels. The level of stride 4 * 2^i goes through i stages of 3x3 convolution to
    `width` channels, GroupNorm, ReLU and 2x bilinear upsampling, that of stride 4 through one stage without upsampling;
    the results are summed.

    Args:
        channels: Channels of each level.
        width: Channels of the stages and of the output; 128 in the paper.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(channels), 2 * width)
        self.branches = nn.ModuleList(
            nn.ModuleList(_conv_group_norm(width if stage else 2 * width, width) for stage in range(max(1, level)))
            for level in range(len(channels))
        )
        self.out_channels = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the map of stride 4 that is classified."""
        levels = list(self.pyramid(OrderedDict((str(index), x) for index, x in enumerate(maps))).values())
        found = []
        for level, (x, branch) in enumerate(zip(levels, self.branches, strict=True)):
            for step, stage in enumerate(cast(nn.ModuleList, branch)):
                x = resized(stage(x), levels[max(0, level - step - 1)].shape[-2:])
            found.append(x)
        return torch.stack(found).sum(0)


def _conv_group_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(groups_of(out_channels), out_channels), nn.ReLU())


class BinAverages(nn.Module):
    """Averages of a map over side x side bins, equal to adaptive average pooling.

    Bin i of a side of H positions is floor(i H / side) .. ceil((i + 1) H / side) - 1. Averages of rows and columns are
    matrix products, whose matrices are computed from the size of the map. Exported graphs then follow this size;
    exporters write the bins of `nn.AdaptiveAvgPool2d` for the size of the example.

    Args:
        side: Number of bins in a row and in a column.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages (N, C, side, side)."""
        return self._weights(x, -2) @ (x @ self._weights(x, -1).mT)

    def _weights(self, x: Tensor, dim: int) -> Tensor:
        """Return the weights (side, positions) of the positions along one dimension in the average of each bin."""
        length = x.shape[dim]
        position = torch.arange(length, device=x.device) * self.side
        start = torch.arange(self.side, device=x.device)[:, None] * length
        inside = ((position + self.side > start) & (position < start + length)).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


class PyramidPooling(nn.Module):
    """Pyramid pooling module: Zhao et al., Pyramid Scene Parsing Network (arXiv 1612.01105), section 3.2.

    The map, and its averages over 1x1, 2x2, 3x3 and 6x6 bins projected to `width` and upsampled, are concatenated and
    go through a 3x3 convolution. The few values of the bins are normalized by GroupNorm: a batch of few images has no
    reliable statistics of them.

    Args:
        channels: Channels of the map.
        width: Channels of the projections and of the output.
    """

    BINS = (1, 2, 3, 6)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.bins = nn.ModuleList([
            nn.Sequential(
                BinAverages(side),
                nn.Conv2d(channels, width, 1, bias=False),
                nn.GroupNorm(groups_of(width), width),
                nn.ReLU(),
            )
            for side in self.BINS
        ])  # fmt: skip
        self.fuse = conv_norm_relu(channels + len(self.BINS) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (N, width, H, W)."""
        return self.fuse(torch.cat([x, *(resized(pool(x), x.shape[-2:]) for pool in self.bins)], 1))


class UPerNetDecoder(nn.Module):
    """UPerNet: Xiao et al., Unified Perceptual Parsing for Scene Understanding (arXiv 1807.10221), section 3.

    Pyramid pooling on the deepest level, a feature pyramid below it, all levels concatenated at stride 4, and a 3x3
    convolution.

    Args:
        channels: Channels of each level.
        width: Channels of the pyramid and of the output; 512 in the paper.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pooling = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList([conv_norm_relu(c, width, 1) for c in channels[:-1]])
        self.smooth = nn.ModuleList([conv_norm_relu(width, width, 3) for _ in channels[:-1]])
        self.fuse = conv_norm_relu(len(channels) * width, width, 3)
        self.out_channels = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the map of stride 4 that is classified."""
        levels = [self.pooling(maps[-1])]
        for lateral, x in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):
            finer = lateral(x)
            levels.insert(0, finer + resized(levels[0], finer.shape[-2:]))
        size = levels[0].shape[-2:]
        smooth = [layer(x) for layer, x in zip(self.smooth, levels[:-1], strict=True)]
        return self.fuse(torch.cat([resized(x, size) for x in [*smooth, levels[-1]]], 1))


class AuxiliaryHead(nn.Module):
    """Fully convolutional head of one map (arXiv 1411.4038): 3x3 convolution, BatchNorm, ReLU, dropout, classifier.

    Args:
        channels: Channels of the map.
        num_classes: Number of classes.
        dropout: Probability that a channel is dropped.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        width = max(num_classes, min(channels // 4, 256))
        self.layers = nn.Sequential(
            conv_norm_relu(channels, width, 3), nn.Dropout2d(dropout), classifier(width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W)."""
        return self.layers(x)


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Return the 1x1 convolution that computes the logits.

    Weights of variance 1 / (2 channels): with much smaller ones, decoder and trunk hardly get a gradient at first.
    """
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=(2 * channels) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


DECODERS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    "fish": FishDecoder,
    "hypercolumn": HypercolumnDecoder,
    "fpn": lambda channels, width, layers: FPNDecoder(channels, width),
    "upernet": lambda channels, width, layers: UPerNetDecoder(channels, width),
}
"""Own decoders by name: channels of the levels, width, number of layers -> decoder."""

WIDTHS: dict[str, tuple[int, int, int, int]] = {
    "fish": (48, 64, 96, 128),
    "hypercolumn": (96, 128, 192, 256),
    "fpn": (32, 48, 64, 128),
    "upernet": (64, 96, 128, 512),
}
"""Default widths of the own decoders, for trunks with fewer parameters than each of `LIMITS`, and above the last."""
LIMITS = (1e6, 6e6, 15e6)
"""Numbers of parameters of a trunk at which the default width changes."""


def default_width(decoder: str, parameters: int) -> int:
    """Return the default width of a decoder for a trunk with so many parameters."""
    return WIDTHS[decoder][sum(parameters >= limit for limit in LIMITS)]
