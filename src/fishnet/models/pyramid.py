"""Necks: four maps of a trunk -> a pyramid of maps with equal width, for region- and pixel-level heads.

The maps of a pre-activation network are raw sums of residual branches: BatchNorm and ReLU are applied before the neck.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from fishnet.errors import UsageError
from fishnet.models.shared_norm import SharedBatchNorm2d
from fishnet.models.trunk import Trunk

Neck = Literal["fpn", "none"]
Extra = Literal["none", "pool", "p6p7"]


class Pyramid(nn.Module):
    """A neck: maps of a trunk -> {"0": stride 4, ... "3": stride 32, extra levels}, all of equal width.

    Args:
        trunk: Trunk that returns the maps; only its channels and strides are read, it is not kept.
        width: Channels of every output map.
        neck: `fpn` for the top-down path of Lin et al. (arXiv 1612.03144), `none` for 1x1 projections only.
        norm_relu: Whether BatchNorm and ReLU are applied before the neck; None applies them to pre-activation trunks.
        extra: Levels beyond stride 32: `pool` (stride 64), `p6p7` (64 and 128), or `none`.
        finest: Index of the first trunk map that is used; 1 starts at stride 8.
    """

    def __init__(
        self,
        trunk: Trunk,
        width: int = 256,
        neck: Neck = "fpn",
        norm_relu: bool | None = None,
        extra: Extra = "none",
        finest: int = 0,
    ) -> None:
        super().__init__()
        if neck not in ("fpn", "none"):
            raise UsageError(f"pyramid.neck must be fpn or none, not {neck!r}")
        if width < 1:
            raise UsageError(f"pyramid.width must be at least 1 channel, not {width}")
        self.finest = finest
        channels = trunk.channels[finest:]
        self.out_channels = width
        wanted = trunk.pre_activation if norm_relu is None else norm_relu
        self.norms = nn.ModuleList([_norm_relu(c) if wanted else nn.Identity() for c in channels])
        more: ExtraFPNBlock | None = {"none": None, "pool": LastLevelMaxPool()}.get(extra)
        if extra == "p6p7":
            more = LastLevelP6P7(width, width)
        self.neck = (FeaturePyramidNetwork if neck == "fpn" else Projections)(channels, width, more)
        last = trunk.strides[-1]
        self.strides = trunk.strides[finest:] + {"none": [], "pool": [2 * last], "p6p7": [2 * last, 4 * last]}[extra]
        names = {"none": [], "pool": ["pool"], "p6p7": ["p6", "p7"]}[extra]
        self.names = [str(index) for index in range(finest, len(trunk.strides))] + names

    def forward(self, maps: list[Tensor]) -> OrderedDict[str, Tensor]:
        """Return the levels by name, the finest first."""
        ready = [norm(x) for norm, x in zip(self.norms, maps[self.finest :], strict=True)]
        return self.neck(OrderedDict(zip(self.names, ready, strict=False)))


def _norm_relu(channels: int) -> nn.Sequential:
    # not in place: the trunk also uses the raw map
    return nn.Sequential(SharedBatchNorm2d(channels), nn.ReLU())


class Projections(nn.Module):
    """A 1x1 convolution per level, without connections between levels.

    Args:
        in_channels: Channels of each map.
        out_channels: Channels of every output map.
        extra: Module that adds levels from the coarsest one.
    """

    def __init__(self, in_channels: list[int], out_channels: int, extra: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, out_channels, 1) for channels in in_channels])
        self.extra = extra
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]  # as in torchvision's FPN
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return the projected maps by name."""
        names, raw = list(maps), list(maps.values())
        results = [layer(x) for layer, x in zip(self.layers, raw, strict=True)]
        if self.extra is not None:
            results, names = self.extra(results, raw, names)
        return OrderedDict(zip(names, results, strict=True))
