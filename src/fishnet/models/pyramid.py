"""Maps of strides 4 to 32 of any backbone, under fixed names, for region- and pixel-level heads.

`Trunk` is a backbone (a fish or a timm network) that gives four raw maps; `Pyramid` puts the norms that raw maps of a
pre-activation network need, and a neck, on it. The head of a fish is a pyramid already, every level of which is deep:
its neck may be no more than a 1x1 projection per level.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from fishnet.errors import FishnetError, UsageError
from fishnet.models import VARIANTS, check_name, create_model
from fishnet.models.fishnet import FishNet
from fishnet.models.stages import set_stage_checkpointing

Taps = Literal["head", "body", "tail"]
Neck = Literal["fpn", "none"]
Extra = Literal["none", "pool", "p6p7"]

TAPS: dict[str, tuple[str, str, str, str]] = {
    "head": ("b3", "h1", "h2", "h3"),
    "body": ("b3", "b2", "b1", "bridge"),
    "tail": ("stem", "t1", "t2", "t3"),
}
"""Stages of a fish that make a pyramid, from stride 4 to 32."""

_STRIDES = (4, 8, 16, 32)


class Trunk(nn.Module):
    """A backbone without its classifier: images (N, C, H, W) -> four maps, the finest first.

    Attributes:
        channels: Channels of the maps.
        strides: Strides of the maps.
        pre_activation: Whether the maps are raw sums that want a norm and a ReLU before the next convolution.
    """

    channels: list[int]
    strides: list[int]
    pre_activation: bool

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps."""
        raise NotImplementedError

    def layers(self) -> dict[str, str]:
        """Return a regular expression for the parameters of every layer, in order, for rates that fall with depth."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the network wants no weight decay for."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        raise NotImplementedError


class FishTrunk(Trunk):
    """A fish up to the taps: head (the default), body or tail; what lies behind them is removed.

    Args:
        fish: Network to take apart; its modules are shared, not copied.
        taps: Which stages give the maps.
    """

    pre_activation = True

    def __init__(self, fish: FishNet, taps: Taps = "head") -> None:
        super().__init__()
        if taps not in TAPS:
            raise UsageError(f"pyramid.taps: {taps!r} is none of {', '.join(TAPS)}")
        self.taps = TAPS[taps]
        self.strides = [fish.stage_info[name][0] for name in self.taps]
        self.channels = [fish.stage_info[name][1] for name in self.taps]
        if len(set(self.strides)) < len(self.taps):
            raise UsageError(f"output_stride={fish.config.output_stride} leaves no pyramid: maps of equal stride")
        self.min_size = fish.min_size
        self.stem, self.tail = fish.stem, fish.tail
        self.bridge = None if taps == "tail" else fish.bridge
        self.body = None if taps == "tail" else fish.body
        self.head = fish.head if taps == "head" else None
        self._matcher = fish.group_matcher(coarse=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps."""
        side = self.min_size
        if min(images.shape[-2:]) < side:  # a batch of small photos: its border is filled, the maps stay usable
            images = F.pad(images, (0, max(0, side - images.shape[-1]), 0, max(0, side - images.shape[-2])))
        maps: dict[str, Tensor] = {"stem": self.stem(images)}
        maps["t1"], maps["t2"], maps["t3"] = self.tail(maps["stem"])
        if self.bridge is not None and self.body is not None:
            maps["bridge"] = self.bridge(maps["t3"])
            body = self.body(maps["bridge"], maps["t2"], maps["t1"], maps["stem"])
            maps["b1"], maps["b2"], maps["b3"] = body
            if self.head is not None:
                outputs = self.head(maps["b3"], maps["b2"], maps["b1"], maps["bridge"])
                maps["h1"], maps["h2"], maps["h3"] = outputs
        return [maps[name] for name in self.taps]

    def layers(self) -> dict[str, str]:
        """Return the stages of the fish."""
        return {name: pattern.removeprefix("^") for name, pattern in self._matcher.items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every stage in the backward pass."""
        set_stage_checkpointing(self, enable)


class TimmTrunk(Trunk):
    """Any timm network with maps of strides 4, 8, 16 and 32.

    Args:
        name: timm name.
        options: Keywords of the network; `pretrained=True` loads timm's weights.
    """

    pre_activation = False

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        reductions = _reductions(name)
        if missing := [stride for stride in _STRIDES if stride not in reductions]:
            raise UsageError(
                f"{name} has no map of stride {', '.join(map(str, missing))} (it has "
                f"{', '.join(map(str, reductions)) or 'none'}); a pyramid needs 4, 8, 16 and 32"
            )
        # of several maps with one stride the last is the most refined
        indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in _STRIDES)
        self.network = create_model(name, num_classes=0, features_only=True, out_indices=indices, **options)
        self.channels = list(self.network.feature_info.channels())  # type: ignore[union-attr,operator]
        self.strides = list(self.network.feature_info.reduction())  # type: ignore[union-attr,operator]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps."""
        return self.network(images)

    def layers(self) -> dict[str, str]:
        """Return the parts of the network in the order in which it runs them."""
        return {name: rf"network\.{re.escape(name)}\b" for name, _ in self.network.named_children()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations where timm's network can."""
        self.network.set_grad_checkpointing(enable)  # type: ignore[operator]


def _reductions(name: str) -> list[int]:
    """Return the strides of all maps that a timm network offers, built without memory for its weights."""
    check_name(name)
    try:
        with torch.device("meta"):
            network: Any = timm.create_model(name, features_only=True)
        return list(network.feature_info.reduction())
    except (RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UsageError(f"{name} gives no maps that a pyramid could take ({type(error).__name__}: {error})") from error


def build_trunk(name: str, taps: Taps = "head", weights: str | None = None, **options: Any) -> Trunk:
    """Return a fish or a timm network as a trunk.

    Args:
        name: Member of the family or timm name.
        taps: Stages of a fish that make the pyramid.
        weights: Classification run, checkpoint or tag to take the trunk from; `pretrained` takes timm's.
        options: Keywords of the network.

    Raises:
        UsageError: Unknown name or keyword, or a network without the four strides.
        FishnetError: The weights cannot be read or do not fit.
    """
    if weights == "pretrained":
        options["pretrained"] = True
    if name in VARIANTS:
        fish = create_model(name, **options)
        assert isinstance(fish, FishNet)
        if weights and weights != "pretrained":
            _load_trunk(fish, weights)
        return FishTrunk(fish, taps)
    if taps != "head":
        raise UsageError(f"pyramid.taps={taps}: only a fish has stages of that name; {name} gives its own four maps")
    trunk = TimmTrunk(name, **options)
    if weights and weights != "pretrained":
        _take_weights(trunk, name, weights, options)
    return trunk


def _load_trunk(model: nn.Module, weights: str) -> None:
    from fishnet.models.weights import load_weights

    print(load_weights(model, weights, skip_classifier=True))


def _take_weights(trunk: TimmTrunk, name: str, weights: str, options: dict[str, Any]) -> None:
    """Load a whole classifier of the same name and hand its trunk over."""
    whole = create_model(name, **{key: value for key, value in options.items() if key != "pretrained"})
    _load_trunk(whole, weights)
    state = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    own = trunk.network.state_dict()
    # timm's feature networks keep the names of layers, some behind a prefix, some with the dots of containers flattened
    found = {key: state.get(key.removeprefix("model.").replace(".", "_")) for key in own}
    if missing := [key for key, value in found.items() if value is None or value.shape != own[key].shape]:
        raise FishnetError(
            f"{len(missing)} of {len(own)} weights of the trunk of {name} are not in {weights}, such as {missing[0]}"
        )
    trunk.network.load_state_dict(found)


class Pyramid(nn.Module):
    """A trunk with a neck: images (N, C, H, W) -> {"0": stride 4, ... "3": stride 32, extra levels}, one width.

    Args:
        trunk: Where the maps come from.
        width: Channels of every map that comes out.
        neck: fpn: the top-down path of Lin et al. (arXiv 1612.03144); none: 1x1 projections only.
        norm_relu: Whether BatchNorm and ReLU stand in front of the neck; nothing: where the trunk's maps are raw sums.
        extra: Levels beyond stride 32: pool (stride 64), p6p7 (64 and 128), or none.
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
            raise UsageError(f"pyramid.neck: {neck!r} is neither fpn nor none")
        if width < 1:
            raise UsageError(f"pyramid.width: {width} is not a number of channels")
        self.trunk, self.finest = trunk, finest
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

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps by name, the finest first."""
        maps = self.trunk(images)[self.finest :]
        ready = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return self.neck(OrderedDict(zip(self.names, ready, strict=False)))


def _norm_relu(channels: int) -> nn.Sequential:
    # not in place: the raw map also goes on through the trunk
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class Projections(nn.Module):
    """A 1x1 convolution per level, no way between them.

    Args:
        in_channels: Channels of each map.
        out_channels: Channels of every map that comes out.
        extra: Levels made from the coarsest one.
    """

    def __init__(self, in_channels: list[int], out_channels: int, extra: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, out_channels, 1) for channels in in_channels])
        self.extra = extra
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]  # as the FPN's own
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return the projected maps by name."""
        names, raw = list(maps), list(maps.values())
        results = [layer(x) for layer, x in zip(self.layers, raw, strict=True)]
        if self.extra is not None:
            results, names = self.extra(results, raw, names)
        return OrderedDict(zip(names, results, strict=True))
