"""Trunks: a FishNet or timm network without its classifier, which gives four maps, pooled features, or both.

The head of a FishNet is a pyramid of deep features; body and tail give maps of the same strides at lower cost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from fishnet.errors import FishnetError, UsageError
from fishnet.models import VARIANTS, check_name, create_model
from fishnet.models.checkpoints.weights import load_to_train
from fishnet.models.config import too_small
from fishnet.models.fishnet import FishNet
from fishnet.models.norms import apply_norm_policy, note_loaded_norms
from fishnet.models.stages import set_stage_checkpointing
from fishnet.models.timm_types import LayerGroups, ModelOptions, Pattern, TimmClassifier, TimmFeatures
from fishnet.models.trials import SIZES, find_fault, freeze_idle

Taps = Literal["head", "body", "tail"]

TAPS: dict[str, tuple[str, str, str, str]] = {
    "head": ("b3", "h1", "h2", "h3"),
    "body": ("b3", "b2", "b1", "bridge"),
    "tail": ("stem", "t1", "t2", "t3"),
}
"""Stages of a FishNet that form a pyramid, from stride 4 to 32."""

STRIDES = (4, 8, 16, 32)
"""Strides of the four maps of every trunk."""
_ANY_SIZE: tuple[ModelOptions, ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Keyword arguments with which timm's families accept images of any size."""
_WRAPPED = ("model", "body")
"""Names under which timm's feature networks contain the whole network, if they do not take it apart."""


class Features(NamedTuple):
    """Output of a trunk."""

    maps: list[Tensor]
    """Four raw maps (N, C, H, W), the finest first; empty if no head takes maps."""
    vector: Tensor | None = None
    """Pooled features (N, C), the input of a classifier; None if no head takes them."""


class Trunk(nn.Module):
    """A backbone without its classifier: images (N, C, H, W) -> `Features`.

    Attributes:
        channels: Channels of the maps.
        strides: Strides of the maps.
        pre_activation: Whether the maps are raw sums that need a norm and a ReLU before the next convolution.
        width: Channels of the vector.
    """

    channels: list[int]
    strides: list[int]
    pre_activation: bool
    width: int

    def forward(self, images: Tensor) -> Features:
        """Return maps, vector, or both."""
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """Module whose submodules have the usual names of the backbone."""
        return self

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return timm's layer groups in the order of the layers, for layer-wise learning rate decay.

        Args:
            prefix: Regular expression that precedes the names of the trunk's parameters.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the network exempts from weight decay."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        raise NotImplementedError

    def freeze_idle(self, first: int, in_chans: int = 3) -> None:
        """Disable the gradients of parameters that neither the vector nor a map from index `first` on depends on."""
        freeze_idle(self, first, in_chans)


class FishTrunk(Trunk):
    """A FishNet up to its taps or pooled features, without the modules behind them.

    Args:
        fish: Network to take the modules from; they are shared, not copied.
        taps: Stages that give the maps: head, body or tail; None gives no maps.
        vector: Whether to give pooled features.
    """

    pre_activation = True

    def __init__(self, fish: FishNet, taps: Taps | None = "head", vector: bool = False) -> None:
        super().__init__()
        if taps is not None and taps not in TAPS:
            raise UsageError(f"pyramid.taps must be one of {', '.join(TAPS)}, not {taps!r}")
        self.taps = TAPS[taps] if taps else ()
        self.strides = [fish.stage_info[name][0] for name in self.taps]
        self.channels = [fish.stage_info[name][1] for name in self.taps]
        if len(set(self.strides)) < len(self.taps):
            raise UsageError(f"output_stride={fish.config.output_stride} gives maps of equal stride; use a larger one")
        self.min_size, self.width = fish.min_size, fish.head_hidden_size
        self.stem, self.tail = fish.stem, fish.tail
        deep = vector or taps != "tail"
        self.bridge = fish.bridge if deep else None
        self.body = fish.body if deep else None
        self.head = fish.head if vector or taps == "head" else None
        self.score = fish.score if vector else None
        self.global_pool: nn.Module | None = fish.global_pool if vector else None
        self.head_drop: nn.Module | None = fish.head_drop if vector else None
        self._matchers = {coarse: fish.group_matcher(coarse) for coarse in (False, True)}

    def forward(self, images: Tensor) -> Features:
        """Return maps, vector, or both."""
        images = self._of_usable_size(images)
        maps: dict[str, Tensor] = {"stem": self.stem(images)}
        maps["t1"], maps["t2"], maps["t3"] = self.tail(maps["stem"])
        if self.bridge is not None and self.body is not None:
            maps["bridge"] = self.bridge(maps["t3"])
            body = self.body(maps["bridge"], maps["t2"], maps["t1"], maps["stem"])
            maps["b1"], maps["b2"], maps["b3"] = body
            if self.head is not None:
                outputs = self.head(maps["b3"], maps["b2"], maps["b1"], maps["bridge"])
                maps["h1"], maps["h2"], maps["h3"] = outputs
        vector = None
        if self.score is not None and self.global_pool is not None and self.head_drop is not None:
            vector = self.head_drop(self.global_pool(self.score(maps["h3"])))
        return Features([maps[name] for name in self.taps], vector)

    def _of_usable_size(self, images: Tensor) -> Tensor:
        """Pad images below the minimum size with zeros if the trunk gives maps, else raise FishInputError."""
        side, (height, width) = self.min_size, images.shape[-2:]
        if min(height, width) >= side:
            return images
        if not self.taps:
            raise too_small(height, width, side)
        return F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return the stages of the FishNet as groups if the trunk gives maps, else its blocks."""
        return with_prefix(self._matchers[bool(self.taps)], prefix)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every stage in the backward pass."""
        set_stage_checkpointing(self, enable)

    def freeze_idle(self, first: int, in_chans: int = 3) -> None:
        """Disable the gradients of parameters that only an unused first map depends on."""
        if first and self.taps == TAPS["body"]:  # elsewhere each map also feeds later ones
            freeze_idle(self, first, in_chans)


class WholeTrunk(Trunk):
    """A timm network of any family up to its pooled features; it gives no maps.

    Args:
        network: timm classifier without its last layer.
    """

    pre_activation = False

    def __init__(self, network: TimmClassifier) -> None:
        super().__init__()
        self.network = network
        self.channels, self.strides, self.width = [], [], network.head_hidden_size

    def forward(self, images: Tensor) -> Features:
        """Return the vector."""
        return Features([], self.network.forward_head(self.network.forward_features(images), pre_logits=True))

    @property
    def backbone(self) -> nn.Module:
        """The timm network."""
        return self.network

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return the groups defined by the timm network."""
        return with_prefix(self.network.group_matcher(coarse=False), prefix + r"network\.")

    def no_weight_decay(self) -> set[str]:
        """Return the names defined by the timm network."""
        return no_weight_decay_of(self.network, "network.")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, if the timm network supports it."""
        self.network.set_grad_checkpointing(enable)


def with_prefix(matcher: LayerGroups, prefix: str) -> LayerGroups:
    """Return timm's layer groups with a prefix in front of every pattern."""

    def longer(text: str) -> str:
        return f"{prefix}(?:{text.removeprefix('^').replace('|^', '|')})"

    def prefixed(pattern: Pattern) -> Pattern:
        return longer(pattern) if isinstance(pattern, str) else (longer(pattern[0]), *pattern[1:])

    return {
        name: [prefixed(pattern) for pattern in entry] if isinstance(entry, list) else prefixed(entry)
        for name, entry in matcher.items()
    }


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
        self.network = _build_features(name, options | _find_way(name, options))
        self.channels = list(self.network.feature_info.channels())
        self.strides = list(self.network.feature_info.reduction())

    def forward(self, images: Tensor) -> Features:
        """Return the four maps."""
        return Features(self.network(images))

    @property
    def backbone(self) -> nn.Module:
        """The timm network, without the wrapper of timm's feature networks."""
        whole = self._whole
        return whole[1] if whole else self.network

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return one group per part of the network that has parameters, in the order of the forward pass."""
        inner: nn.Module = self.network
        own = "network"
        if whole := self._whole:
            own, inner = f"network.{whole[0]}", whole[1]
        found: list[str] = []
        for name, child in inner.named_children():
            inside = [f"{name}.{key}" for key, _ in child.named_children()]
            # timm's wrappers flatten containers of stages, unless they keep the network whole: then flatten them here
            found += inside if whole and isinstance(child, nn.Sequential | nn.ModuleList) else [name]
        found = [name for name in found if any(True for _ in inner.get_submodule(name).parameters())]
        return with_prefix({name: re.escape(f"{own}.{name}") + r"\b" for name in found}, prefix)

    def no_weight_decay(self) -> set[str]:
        """Return the names defined by the timm network; a network that timm takes apart defines none."""
        whole = self._whole
        return no_weight_decay_of(whole[1], f"network.{whole[0]}.") if whole else set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, if the timm network supports it."""
        whole = self._whole  # timm's feature getter does not have the method
        owner = whole[1] if whole and not hasattr(self.network, "set_grad_checkpointing") else self.network
        owner.set_grad_checkpointing(enable)  # type: ignore[operator]

    @property
    def _whole(self) -> tuple[str, nn.Module] | None:
        """Name and module of the network in timm's wrapper; None if the wrapper takes the network apart."""
        parts = dict(self.network.named_children())
        ((name, inner), *more) = parts.items()
        return (name, inner) if not more and name in _WRAPPED else None


def _build_features(name: str, options: ModelOptions) -> TimmFeatures:
    return cast(TimmFeatures, create_model(name, num_classes=0, features_only=True, **options))


def _find_way(name: str, options: ModelOptions) -> ModelOptions:
    """Return the keyword arguments with which a timm network gives the four maps for images of any size.

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
        "swin_tiny_patch4_window7_224 (docs/trunks.md lists what works)"
    )


def _features_way(name: str, options: ModelOptions) -> ModelOptions:
    """Return the keyword arguments with which timm gives the maps of strides 4 to 32 as (N, C, H, W)."""
    try:
        with torch.device("meta"):
            network = _build_features(name, options)
        info = network.feature_info
        reductions = list(info.reduction(list(range(len(info)))))
    except (RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UsageError(f"{name} gives no maps that a pyramid could take ({type(error).__name__}: {error})") from error
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
        return f"gives no maps that a pyramid could take: {fault}"
    if _fault(name, options, [(height, 2 * width)]) is not None:
        return f"takes images of {height}x{width} pixels only, and a pyramid must take any size"
    return f"takes only images whose sides are multiples of a number such as {height}, and a pyramid must take any size"


def build_trunk(
    name: str,
    taps: Taps | None = "head",
    num_classes: int | None = None,
    weights: str | None = None,
    group_norm: bool = False,
    **options: Any,
) -> tuple[Trunk, nn.Module | None]:
    """Build a FishNet or a timm network as a trunk, and its last layer if `num_classes` is given.

    Args:
        name: Name of a FishNet or of a timm model.
        taps: Stages of a FishNet that give the maps; None gives pooled features only.
        num_classes: Number of classes of the last layer; None gives maps only.
        weights: Run, checkpoint or tag to load the trunk from, and the last layer if it has the same size;
            `pretrained` loads the published weights.
        group_norm: Whether to replace BatchNorms by group norms; they take scale and shift from the norms of the
            weights, whichever of the two kinds these are.
        options: Keyword arguments of the network.

    Raises:
        UsageError: The name or a keyword is unknown, the network lacks one of the four strides, or the weights have
            group norms but the network is to have BatchNorms.
        FishnetError: The weights cannot be read or do not fit.
    """
    if weights == "pretrained":
        options["pretrained"] = True
    from_file = weights if weights != "pretrained" else None
    if name not in VARIANTS and taps is not None:
        if num_classes is not None:
            raise UsageError(f"{name} gives maps or pooled features, not both: choose a FishNet to have both")
        return _timm_maps(name, taps, from_file, group_norm, options), None
    if num_classes is not None:
        options["num_classes"] = num_classes
    whole = create_model(name, **options)
    if from_file:
        load_to_train(whole, from_file, group_norm, skip_classifier=True if num_classes is None else "resize")
    if group_norm:
        whole = apply_norm_policy(whole, "group")
    return split(whole, taps, vector=num_classes is not None)


def split(whole: nn.Module, taps: Taps | None = None, vector: bool = True) -> tuple[Trunk, nn.Module | None]:
    """Split a whole classifier into its trunk and, if `vector`, its last layer.

    Args:
        whole: FishNet or timm classifier; its modules are shared, not copied.
        taps: Stages of a FishNet that give the maps; None gives no maps.
        vector: Whether the trunk gives pooled features.

    Raises:
        UsageError: The network has no single last layer.
    """
    classifier = cast(TimmClassifier, whole)
    last = take_classifier(classifier) if vector else None
    return (FishTrunk(whole, taps, vector) if isinstance(whole, FishNet) else WholeTrunk(classifier)), last


def take_classifier(network: TimmClassifier) -> nn.Module:
    """Remove the last layer from a timm classifier and return it: pooled features (N, C) -> logits (N, classes).

    Raises:
        UsageError: The network has no single last layer, such as distilled networks with two.
    """
    name = network.pretrained_cfg.get("classifier")
    if not isinstance(name, str) or not name:
        architecture = network.pretrained_cfg.get("architecture", type(network).__name__)
        raise UsageError(f"{architecture} has no single last layer to train; choose another network")
    last = network.get_submodule(name)
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, nn.Identity())
    return last


def _timm_maps(name: str, taps: Taps, weights: str | None, group_norm: bool, options: ModelOptions) -> TimmTrunk:
    if taps != "head":
        raise UsageError(f"pyramid.taps={taps}: only FishNets have such stages; leave it out for {name}")
    trunk = TimmTrunk(name, **options)
    if weights:
        _take_weights(trunk, name, weights, group_norm, options)
    if group_norm:
        apply_norm_policy(trunk, "group")
    return trunk


def _take_weights(trunk: TimmTrunk, name: str, weights: str, group_norm: bool, options: ModelOptions) -> None:
    """Load weights into a whole classifier of the same name and copy its trunk."""
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
    """Return the name of a tensor without the wrapper of timm's feature networks, with flattened containers."""
    wrapper, _, rest = key.partition(".")
    return (rest if wrapper in _WRAPPED else key).replace(".", "_")
