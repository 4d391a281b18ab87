"""Trunks from timm's networks of any family: four maps, pooled features, or both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
import torch
from timm.layers import Format
from timm.models import FeatureInfo
from timm.models._manipulate import group_with_matcher
from timm.optim import auto_group_layers
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.config import Memory
from fishnet.models.create import check_name, create_model
from fishnet.models.norms import count_batches_once
from fishnet.models.timm_types import LayerGroups, ModelOptions, TimmClassifier, TimmFeatures
from fishnet.models.trials import SIZES, find_fault
from fishnet.models.trunk import STRIDES, Features, Trunk

_ANY_SIZE: tuple[ModelOptions, ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Keyword arguments with which timm's families accept images of any size."""
WRAPPED = ("model", "body")
"""Names under which timm's feature networks contain the whole network, if they do not take it apart."""


class WholeTrunk(Trunk):
    """A timm network of any family up to its pooled features, with maps of its stages if they are wanted.

    Args:
        network: timm classifier without its last layer.
        stages: Indices in the network's `feature_info` of the stages that give maps.
    """

    pre_activation = False

    def __init__(self, network: TimmClassifier, stages: Sequence[int] = ()) -> None:
        super().__init__()
        self.network, self.stages, self.width = network, list(stages), network.head_hidden_size
        self.channels, self.strides = [], []
        if stages:
            info = FeatureInfo(network.feature_info, tuple(stages))
            self.channels, self.strides = list(info.channels()), list(info.reduction())

    def forward(self, images: Tensor) -> Features:
        """Return the vector, and the maps if there are any."""
        maps: list[Tensor] = []
        if self.stages:
            last, maps = self.network.forward_intermediates(images, indices=self.stages, output_fmt="NCHW")
        else:
            last = self.network.forward_features(images)
        return Features(maps, self.network.forward_head(last, pre_logits=True))

    def named_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of the last four stages of different resolutions; empty if timm provides none."""
        if not hasattr(self.network, "forward_intermediates"):
            return {}
        found = self.network.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        maps = cast(list[Tensor], found)
        last = {values.shape[-2:]: values for values in maps}
        return {f"map {number}": values for number, values in enumerate(list(last.values())[-4:], 1)}

    @property
    def backbone(self) -> nn.Module:
        """The timm network."""
        return self.network

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return the groups defined by timm."""
        layers = _timm_layers(self.network)
        return _patterns({f"network.{name}": layer for name, layer in layers.items()}, prefix)

    def no_weight_decay(self) -> set[str]:
        """Return the names defined by the timm network."""
        return no_weight_decay_of(self.network, "network.")

    def set_memory(self, memory: Memory) -> None:
        """Recompute activations in the backward pass unless `fast`, as the timm network does it."""
        _recompute(self, self.network, memory)


def no_weight_decay_of(network: nn.Module, prefix: str) -> set[str]:
    """Return the names of the parameters that a timm network exempts from weight decay, with a prefix."""
    return {prefix + name for name in getattr(network, "no_weight_decay", set)()}


class TimmTrunk(Trunk):
    """A timm network with maps of strides 4, 8, 16 and 32 for images of any size.

    The network is first tried on the meta device, so that it fails before it is loaded or trained. Maps are always
    (N, C, H, W): if a family works on (N, H, W, C), timm's feature getter permutes them.

    Args:
        name: Name of a timm model.
        options: Keyword arguments of the model; `pretrained=True` loads timm's weights.

    Raises:
        UsageError: The name or a keyword is unknown, or the network has no maps of the four strides for images of any
            size.
    """

    pre_activation = False

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        found = options | _find_way(name, options)
        self.network = _build_features(name, found)
        no_options = ("pretrained", "checkpoint_path", "out_indices", "feature_cls")  # of a classifier without weights
        self._name, self._options = name, {key: value for key, value in found.items() if key not in no_options}
        self.channels = list(self.network.feature_info.channels())
        self.strides = list(self.network.feature_info.reduction())

    def forward(self, images: Tensor) -> Features:
        """Return the four maps."""
        return Features(self.network(images))

    def named_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the four maps."""
        return {f"map {number}": values for number, values in enumerate(self.network(images), 1)}

    @property
    def backbone(self) -> nn.Module:
        """The timm network, without the wrapper of timm's feature networks."""
        whole = self._whole
        return whole[1] if whole else self.network

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return the groups that timm defines for the classifier of this name."""
        with torch.device("meta"):
            whole = cast(TimmClassifier, create_model(self._name, **self._options))
        layers = {plain_name(name): layer for name, layer in _timm_layers(whole).items()}
        own = {name: layers.get(plain_name(name)) for name, _ in self.network.named_parameters()}
        return _patterns({f"network.{name}": layer for name, layer in own.items() if layer is not None}, prefix)

    def no_weight_decay(self) -> set[str]:
        """Return the names defined by the timm network; a network that timm takes apart defines none."""
        whole = self._whole
        return no_weight_decay_of(whole[1], f"network.{whole[0]}.") if whole else set()

    def set_memory(self, memory: Memory) -> None:
        """Recompute activations in the backward pass unless `fast`, as the timm network does it."""
        whole = self._whole  # timm's feature getter does not have the method
        owner = whole[1] if whole and not hasattr(self.network, "set_grad_checkpointing") else self.network
        _recompute(self, owner, memory)

    @property
    def _whole(self) -> tuple[str, nn.Module] | None:
        """Name and module of the network in timm's wrapper; None if the wrapper takes the network apart."""
        parts = dict(self.network.named_children())
        ((name, inner), *more) = parts.items()
        return (name, inner) if not more and name in WRAPPED else None


def plain_name(key: str) -> str:
    """Return the name of a tensor without the wrapper of timm's feature networks, with flattened containers."""
    wrapper, _, rest = key.partition(".")
    return (rest if wrapper in WRAPPED else key).replace(".", "_")


def _timm_layers(network: TimmClassifier) -> dict[str, int]:
    """Return the place of each parameter in timm's layer-wise learning rate decay, from the stem on.

    Parameters that share the rate of the classifier are left out.

    Args:
        network: timm classifier, with its last layer or without it.
    """
    entry = network.pretrained_cfg.get("classifier")
    last = [str(name) for name in entry] if isinstance(entry, tuple | list) else [str(entry)] if entry else []
    names = [name for name, _ in network.named_parameters()]
    if not hasattr(network, "group_matcher"):
        layers = auto_group_layers(network)
        return {name: layers[name] for name in names if last and not name.startswith(tuple(last))}
    removed = [f"{name}.weight" for name in last if f"{name}.weight" not in names]
    layers = group_with_matcher(((name, name) for name in names + removed), network.group_matcher(), reverse=True)
    tops = {layers[name] for name in layers if name.startswith(tuple(f"{name}." for name in last))}
    return {name: layers[name] for name in names if layers[name] not in tops}


def _patterns(layers: Mapping[str, int], prefix: str) -> LayerGroups:
    """Return layer groups of exact names, from the place of each name among the layers."""
    groups: dict[int, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer, []).append(re.escape(name))
    return {f"layer {layer}": f"{prefix}(?:{'|'.join(names)})$" for layer, names in sorted(groups.items())}


def _recompute(trunk: Trunk, network: nn.Module, memory: Memory) -> None:
    """Set timm's activation checkpointing, in whose recomputation a batch is not counted again.

    Raises:
        UsageError: The network does not have it.
    """
    try:
        network.set_grad_checkpointing(memory != "fast")  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError):  # timm's networks raise any of these
        if memory == "fast":
            return
        raise UsageError(
            f"{type(network).__name__} of timm cannot recompute activations: --memory {memory} needs a FishNet or a "
            "network with timm's grad checkpointing, such as resnet50; use --memory fast and a smaller --batch-size"
        ) from None
    if memory != "fast":
        count_batches_once(trunk)


def _build_features(name: str, options: ModelOptions) -> TimmFeatures:
    return cast(TimmFeatures, create_model(name, num_classes=0, features_only=True, **options))


def _find_way(name: str, options: ModelOptions) -> ModelOptions:
    """Return the keyword arguments with which a timm network returns the four maps for images of any size.

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
                continue  # the family does not have this keyword
            raise
        fault = _fault(name, plain | extra | way)
        if fault is None:
            return extra | way
        faults.append(fault)
    raise UsageError(
        f"{name} {_limit_of(name, plain | way, faults[0])}; choose another network, such as resnet50, convnext_tiny or "
        "swin_tiny_patch4_window7_224 (docs/trunks.md lists those that work)"
    )


def _features_way(name: str, options: ModelOptions) -> ModelOptions:
    """Return the keyword arguments with which timm returns the maps of strides 4 to 32 as (N, C, H, W)."""
    try:
        with torch.device("meta"):
            network = _build_features(name, options)
        info = network.feature_info
        reductions = list(info.reduction(list(range(len(info)))))
    except (RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UsageError(f"{name} has no feature maps for a pyramid ({type(error).__name__}: {error})") from error
    if missing := [stride for stride in STRIDES if stride not in reductions]:
        raise UsageError(
            f"{name} has no map of stride {', '.join(map(str, missing))} (it has "
            f"{', '.join(map(str, sorted(set(reductions)))) or 'none'}); a pyramid needs 4, 8, 16 and 32"
        )
    # of several maps with the same stride, take the last: it is the deepest
    way: ModelOptions = {"out_indices": tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES)}
    if getattr(network, "output_fmt", Format.NCHW) != Format.NCHW:
        way["feature_cls"] = "getter"
    return way


def _fault(name: str, options: ModelOptions, sizes: Sequence[tuple[int, int]] = SIZES) -> str | None:
    with torch.device("meta"):
        network = _build_features(name, options)
    return find_fault(network, network.feature_info.channels(), STRIDES, options.get("in_chans", 3), sizes)


def _limit_of(name: str, options: ModelOptions, fault: str) -> str:
    """Describe which images a network accepts that does not accept images of any size."""
    config = timm.get_pretrained_cfg(name)
    own = options.get("img_size") or (config.input_size[-2:] if config is not None else SIZES[0])
    height, width = (own, own) if isinstance(own, int) else own
    if _fault(name, options, [(height, width)]) is not None:
        return f"has no feature maps for a pyramid: {fault}"
    if _fault(name, options, [(height, 2 * width)]) is not None:
        return f"takes images of {height}x{width} pixels only, and a pyramid must take any size"
    return f"takes only images whose sides are multiples of a number such as {height}, and a pyramid must take any size"


def stages_beside_vector(name: str, options: ModelOptions) -> tuple[Sequence[int], ModelOptions]:
    """Return which stages of a timm network give the four maps beside its pooled features, and further keywords.

    Raises:
        UsageError: The network cannot give both.
    """
    extra = dict(_find_way(name, options))
    stages = extra.pop("out_indices")
    extra.pop("feature_cls", None)
    with torch.device("meta"):
        plain = {key: value for key, value in options.items() if key != "pretrained"}
        whole = cast(TimmClassifier, create_model(name, **plain | extra))
    if not hasattr(whole, "forward_intermediates"):
        raise UsageError(f"{name} returns maps or pooled features, not both; choose another network, such as resnet50")
    trunk = WholeTrunk(whole, stages)
    if fault := find_fault(_MapsOf(trunk), trunk.channels, STRIDES, options.get("in_chans", 3)):
        raise UsageError(f"{name} returns no maps besides its pooled features: {fault}")
    return stages, extra


class _MapsOf(nn.Module):
    """Maps of a trunk only."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.trunk(images).maps
