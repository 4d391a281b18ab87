"""Maps of strides 4 to 32 of any backbone, under fixed names, for region- and pixel-level heads.

`Trunk` is a backbone (a fish or a timm network) that gives four raw maps; `Pyramid` puts the norms that raw maps of a
pre-activation network need, and a neck, on it. The head of a fish is a pyramid already, every level of which is deep:
its neck may be no more than a 1x1 projection per level.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from fishnet.errors import FishnetError, UsageError
from fishnet.models import VARIANTS, check_name, create_model
from fishnet.models.fishnet import FishNet
from fishnet.models.norms import SharedBatchNorm2d, apply_norm_policy, note_loaded_norms
from fishnet.models.stages import set_stage_checkpointing
from fishnet.models.trials import SIZES, find_fault, freeze_idle
from fishnet.models.weights import load_to_train

Taps = Literal["head", "body", "tail"]
Neck = Literal["fpn", "none"]
Extra = Literal["none", "pool", "p6p7"]

TAPS: dict[str, tuple[str, str, str, str]] = {
    "head": ("b3", "h1", "h2", "h3"),
    "body": ("b3", "b2", "b1", "bridge"),
    "tail": ("stem", "t1", "t2", "t3"),
}
"""Stages of a fish that make a pyramid, from stride 4 to 32."""

STRIDES = (4, 8, 16, 32)
"""Strides of the four maps of every trunk."""
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Keywords by which timm's families are told to take images of any size."""
_WRAPPED = ("model", "body")
"""Names under which timm's feature networks keep a network that they do not take apart."""


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

    def freeze_idle(self, first: int) -> None:
        """Stop the gradients of parameters that no map depends on, from the map of index `first` on."""
        freeze_idle(self, first)


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

    def freeze_idle(self, first: int) -> None:
        """Stop the gradients of what only an unused first map depends on; every other map feeds later ones."""
        if first and self.taps == TAPS["body"]:  # the order of its maps is not that of its stages
            freeze_idle(self, first)


class TimmTrunk(Trunk):
    """A timm network with maps of strides 4, 8, 16 and 32 for images of any size.

    The network is tried on the meta device first, so nothing is loaded or trained that fails later. Maps are always
    (N, C, H, W): where a family works on (N, H, W, C), timm's feature getter turns them.

    Args:
        name: timm name.
        options: Keywords of the network; `pretrained=True` loads timm's weights.

    Raises:
        UsageError: Unknown name or keyword, no maps of the four strides, or a network for images of one size.
    """

    pre_activation = False

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.network = _build_features(name, options | _find_way(name, options))
        self.channels = list(self.network.feature_info.channels())  # type: ignore[union-attr,operator]
        self.strides = list(self.network.feature_info.reduction())  # type: ignore[union-attr,operator]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four maps."""
        return self.network(images)

    def layers(self) -> dict[str, str]:
        """Return the parts of the network that have parameters, in the order in which it runs them."""
        prefix, inner = "network", self.network
        if whole := self._whole:
            prefix, inner = f"network.{whole[0]}", whole[1]
        found: list[str] = []
        for name, child in inner.named_children():
            inside = [f"{name}.{key}" for key, _ in child.named_children()]
            # timm's wrappers flatten containers of stages; where they keep the network whole, this does
            found += inside if whole and isinstance(child, nn.Sequential | nn.ModuleList) else [name]
        found = [name for name in found if any(True for _ in inner.get_submodule(name).parameters())]
        return {name: re.escape(f"{prefix}.{name}") + r"\b" for name in found}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations where timm's network can."""
        whole = self._whole  # timm's feature getter has no switch of its own
        owner = whole[1] if whole and not hasattr(self.network, "set_grad_checkpointing") else self.network
        owner.set_grad_checkpointing(enable)  # type: ignore[operator]

    @property
    def _whole(self) -> tuple[str, nn.Module] | None:
        """Name and value of the network inside timm's wrapper, where the wrapper does not take it apart."""
        parts = dict(self.network.named_children())
        ((name, inner), *more) = parts.items()
        return (name, inner) if not more and name in _WRAPPED else None


def _build_features(name: str, options: dict[str, Any]) -> nn.Module:
    return create_model(name, num_classes=0, features_only=True, **options)


def _find_way(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with which a timm network gives the four maps of images of any size.

    Raises:
        UsageError: There are none.
    """
    check_name(name)
    plain = {key: value for key, value in options.items() if key not in ("pretrained", "checkpoint_path")}
    faults = []
    for extra in ({}, *_ANY_SIZE):
        if extra.keys() & options.keys():
            continue
        try:
            way = _features_way(name, plain | extra)
        except UsageError:
            if extra:
                continue  # the family does not know the keyword
            raise
        fault = _fault(name, plain | extra | way)
        if fault is None:
            return extra | way
        faults.append(fault)
    raise UsageError(
        f"{name} {_limit_of(name, plain | way, faults[0])}; choose another network, such as resnet50, convnext_tiny or "
        "swin_tiny_patch4_window7_224 (docs/trunks.md lists what works)"
    )


def _features_way(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that make timm give the maps of strides 4 to 32 as (N, C, H, W)."""
    try:
        with torch.device("meta"):
            network: Any = _build_features(name, options)
        info = network.feature_info
        reductions = list(info.reduction(list(range(len(info)))))
    except (RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UsageError(f"{name} gives no maps that a pyramid could take ({type(error).__name__}: {error})") from error
    if missing := [stride for stride in STRIDES if stride not in reductions]:
        raise UsageError(
            f"{name} has no map of stride {', '.join(map(str, missing))} (it has "
            f"{', '.join(map(str, sorted(set(reductions)))) or 'none'}); a pyramid needs 4, 8, 16 and 32"
        )
    # of several maps with one stride the last is the most refined
    way: dict[str, Any] = {"out_indices": tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES)}
    if getattr(network, "output_fmt", Format.NCHW) != Format.NCHW:
        way["feature_cls"] = "getter"
    return way


def _fault(name: str, options: dict[str, Any], sizes: Sequence[tuple[int, int]] = SIZES) -> str | None:
    with torch.device("meta"):
        network: Any = _build_features(name, options)
    return find_fault(network, network.feature_info.channels(), STRIDES, options.get("in_chans", 3), sizes)


def _limit_of(name: str, options: dict[str, Any], fault: str) -> str:
    """Say which images a network takes that does not take those of any size."""
    config = timm.get_pretrained_cfg(name)
    own = options.get("img_size") or (config.input_size[-2:] if config is not None else SIZES[0])
    height, width = (own, own) if isinstance(own, int) else own
    if _fault(name, options, [(height, width)]) is not None:
        return f"gives no maps that a pyramid could take: {fault}"
    if _fault(name, options, [(height, 2 * width)]) is not None:
        return f"takes images of {height}x{width} pixels only, and a pyramid must take any size"
    return f"takes only images whose sides are multiples of a number such as {height}, and a pyramid must take any size"


def build_trunk(
    name: str, taps: Taps = "head", weights: str | None = None, group_norm: bool = False, **options: Any
) -> Trunk:
    """Return a fish or a timm network as a trunk.

    Args:
        name: Member of the family or timm name.
        taps: Stages of a fish that make the pyramid.
        weights: Classification run, checkpoint or tag to take the trunk from; `pretrained` takes timm's.
        group_norm: Put group norms in place of BatchNorms; they take over scale and shift of the weights, whichever
            of the two these have.
        options: Keywords of the network.

    Raises:
        UsageError: Unknown name or keyword, a network without the four strides, weights with group norms for
            BatchNorms.
        FishnetError: The weights cannot be read or do not fit.
    """
    if weights == "pretrained":
        options["pretrained"] = True
    from_file = weights if weights != "pretrained" else None
    trunk: Trunk
    if name in VARIANTS:
        fish = create_model(name, **options)
        assert isinstance(fish, FishNet)
        if from_file:
            load_to_train(fish, from_file, group_norm, skip_classifier=True)
        trunk = FishTrunk(fish, taps)
    elif taps != "head":
        raise UsageError(f"pyramid.taps={taps}: only a fish has stages of that name; {name} gives its own four maps")
    else:
        trunk = TimmTrunk(name, **options)
        if from_file:
            _take_weights(trunk, name, from_file, group_norm, options)
    if group_norm:
        apply_norm_policy(trunk, "group")
    return trunk


def _take_weights(trunk: TimmTrunk, name: str, weights: str, group_norm: bool, options: dict[str, Any]) -> None:
    """Load a whole classifier of the same name and hand its trunk over."""
    whole = create_model(name, **{key: value for key, value in options.items() if key != "pretrained"})
    if load_to_train(whole, weights, group_norm, skip_classifier=True).group_norms:
        apply_norm_policy(trunk, "group")
    state = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    own = trunk.network.state_dict()
    found = {key: state.get(_plain_name(key)) for key in own}
    if missing := [key for key, value in found.items() if value is None or value.shape != own[key].shape]:
        raise FishnetError(
            f"{len(missing)} of {len(own)} weights of the trunk of {name} are not in {weights}, such as {missing[0]}"
        )
    trunk.network.load_state_dict(found)
    note_loaded_norms(trunk.network)


def _plain_name(key: str) -> str:
    """Return a tensor's name without the wrapper of timm's feature networks, which also flatten some containers."""
    wrapper, _, rest = key.partition(".")
    return (rest if wrapper in _WRAPPED else key).replace(".", "_")


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
        trunk.freeze_idle(finest)
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
    return nn.Sequential(SharedBatchNorm2d(channels), nn.ReLU())


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
