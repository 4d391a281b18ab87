"""Build trunks: from a name, with or without weights, or from a whole classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from fishnet.errors import FishnetError, UsageError
from fishnet.models.checkpoints.weights import load_to_train
from fishnet.models.config import VARIANTS
from fishnet.models.create import create_model
from fishnet.models.fishnet import FishNet
from fishnet.models.norms import apply_norm_policy, note_loaded_norms
from fishnet.models.timm_trunk import TimmTrunk, WholeTrunk, plain_name, stages_beside_vector
from fishnet.models.timm_types import ModelOptions, TimmClassifier
from fishnet.models.trunk import FishTrunk, Taps, Trunk


def build_trunk(
    name: str,
    taps: Taps | None = "head",
    vector: bool = False,
    num_classes: int | None = None,
    weights: str | None = None,
    group_norm: bool = False,
    **options: Any,
) -> tuple[Trunk, nn.Module | None]:
    """Build a FishNet or a timm network as a trunk, with its last layer if it returns pooled features.

    Args:
        name: Name of a FishNet or of a timm model.
        taps: Stages of a FishNet that the maps are taken from; None returns no maps.
        vector: Whether the trunk returns pooled features.
        num_classes: Number of classes of the last layer.
        weights: Run, checkpoint or tag to load the trunk from, and the last layer if it has the same size;
            `pretrained` loads the published weights.
        group_norm: Whether to replace BatchNorms by group norms; they take scale and shift from the norms of the
            weights, whichever of the two kinds these are.
        options: Keyword arguments of the network.

    Raises:
        UsageError: The name or a keyword is unknown, the network lacks one of the four strides, or the weights have
            group norms but the network is to have BatchNorms.
        FishnetError: The weights cannot be read or do not match.
    """
    if weights == "pretrained":
        options["pretrained"] = True
    from_file = weights if weights != "pretrained" else None
    stages: Sequence[int] = ()
    if name not in VARIANTS and taps is not None:
        if taps != "head":
            raise UsageError(f"pyramid.taps={taps}: only FishNets have such stages; leave it out for {name}")
        if not vector:
            return _timm_maps(name, from_file, group_norm, options), None
        stages, extra = stages_beside_vector(name, options)
        options |= extra
    if num_classes is not None:
        options["num_classes"] = num_classes
    whole = create_model(name, **options)
    if from_file:
        load_to_train(whole, from_file, group_norm, skip_classifier=True if num_classes is None else "resize")
    if group_norm:
        whole = apply_norm_policy(whole, "group")
    return split(whole, taps, vector, stages)


def split(
    whole: nn.Module, taps: Taps | None = None, vector: bool = True, stages: Sequence[int] = ()
) -> tuple[Trunk, nn.Module | None]:
    """Split a whole classifier into its trunk and, if `vector`, its last layer.

    Args:
        whole: FishNet or timm classifier; its modules are shared, not copied.
        taps: Stages of a FishNet that the maps are taken from; None returns no maps.
        vector: Whether the trunk returns pooled features.
        stages: Stages of a timm network that give the maps, as indices of its `feature_info`.

    Raises:
        UsageError: The network has no single last layer.
    """
    classifier = cast(TimmClassifier, whole)
    last = take_classifier(classifier) if vector else None
    return (FishTrunk(whole, taps, vector) if isinstance(whole, FishNet) else WholeTrunk(classifier, stages)), last


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


def _timm_maps(name: str, weights: str | None, group_norm: bool, options: ModelOptions) -> TimmTrunk:
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
    found = {key: state.get(plain_name(key)) for key in own}
    if missing := [key for key, value in found.items() if value is None or value.shape != own[key].shape]:
        raise FishnetError(
            f"{len(missing)} of {len(own)} weights of the trunk of {name} are not in {weights}, such as {missing[0]}"
        )
    trunk.network.load_state_dict(found)
    note_loaded_norms(trunk.network)
