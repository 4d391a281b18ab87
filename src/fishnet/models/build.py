"""Construction of networks, for training and for loading.

An `Architecture` is plain data: backbone, heads and norms. It is stored in the card of a model file, from which the
same network is built again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from fishnet.errors import UsageError
from fishnet.models.build_trunk import build_trunk, split
from fishnet.models.heads.image import ClassifierPlan, ImageHead, similar_layer
from fishnet.models.heads.registry import CLASSIFIER, HEADS, HeadKind, head_kind, register_head
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Batcher, Network
from fishnet.models.norms import apply_norm_policy
from fishnet.models.pyramid import Pyramid
from fishnet.models.timm_types import ModelOptions
from fishnet.models.trunk import Taps, Trunk

__all__ = [
    "CLASSIFIER", "HEADS", "Architecture", "HeadKind", "as_network", "build_network", "plan_of", "register_head",
    "takes_vector",
]  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to build a network again."""

    backbone: str
    """Name of a FishNet or of a timm model."""
    heads: Mapping[str, Any]
    """Plan (`HeadPlan`) of each head, by the name of the head."""
    options: ModelOptions = field(default_factory=dict)
    """Keyword arguments of the backbone."""
    in_chans: int = 3
    """Channels of the images."""
    taps: Taps = "head"
    """Stages of a FishNet that give the feature maps."""
    group_norm: bool = False
    """Whether group norms replace all BatchNorms."""
    uncertainty: bool = False
    """Whether the weights of the heads' losses are learned; they are parameters of the network."""

    def to_dict(self) -> dict[str, object]:
        """Return the architecture as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Architecture:
        """Return the architecture from the values of `to_dict`.

        Raises:
            UsageError: A field or a kind of head is unknown to this version.
        """
        plain = _known_fields(cls, values, "an architecture")
        plain["heads"] = {name: plan_of(entry) for name, entry in dict(plain["heads"]).items()}
        return cls(**plain)


def plan_of(values: Mapping[str, object]) -> HeadPlan:
    """Return the plan of a head from plain values, with `kind` among them.

    Raises:
        UsageError: Its kind or one of its fields is unknown.
    """
    kind = values.get("kind")
    if kind == CLASSIFIER:
        return ClassifierPlan(**_known_fields(ClassifierPlan, values, "a classifier"))
    plan = head_kind(kind).plan
    return plan(**_known_fields(plan, values, str(kind)))


def takes_vector(plan: HeadPlan) -> bool:
    """Return whether a head takes the pooled features instead of maps."""
    return plan.kind == CLASSIFIER or head_kind(plan.kind).takes == "vector"


def _known_fields(kind: type, values: Mapping[str, object], what: str) -> dict[str, Any]:
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{what} has no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def build_network(
    architecture: Architecture,
    weights: str | None = None,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> Network:
    """Build the network of an architecture.

    Args:
        architecture: What to build.
        weights: Run, checkpoint or tag to load the trunk from, and the first classifier if it has the same size;
            `pretrained` loads the published weights. None initializes all weights.
        mean: Channel means of images in 0..1, for lists of images, which the network normalizes itself.
        std: Channel standard deviations of these images.

    Raises:
        UsageError: A name or number in the architecture is invalid.
        FishnetError: The weights cannot be read or do not match.
    """
    plans = dict(architecture.heads)
    for plan in plans.values():
        if plan.kind != CLASSIFIER and (check := head_kind(plan.kind).check):
            check(plan)
    classifier = next((plan for plan in plans.values() if plan.kind == CLASSIFIER), None)
    trunk, last = build_trunk(
        architecture.backbone,
        taps=None if all(takes_vector(plan) for plan in plans.values()) else architecture.taps,
        vector=any(takes_vector(plan) for plan in plans.values()),
        num_classes=classifier.num_classes if classifier else None,
        weights=weights,
        group_norm=architecture.group_norm,
        in_chans=architecture.in_chans,
        **architecture.options,
    )
    return _assemble(trunk, last, architecture, Batcher(mean, std, max(trunk.strides, default=1)))


def as_network(
    whole: nn.Module,
    architecture: Architecture,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> Network:
    """Return a whole classifier as the network of an architecture with an image head only; its modules are shared.

    Args:
        whole: FishNet or timm classifier.
        architecture: Architecture of the classifier.
        mean: Channel means of images in 0..1, for lists of images, which the network normalizes itself.
        std: Channel standard deviations of these images.
    """
    trunk, last = split(whole)
    return _assemble(trunk, last, architecture, Batcher(mean, std, 1))


def _assemble(trunk: Trunk, last: nn.Module | None, architecture: Architecture, batcher: Batcher) -> Network:
    necks: dict[str, Pyramid] = {}
    heads: dict[str, nn.Module] = {}
    taken = False
    for name, plan in architecture.heads.items():
        if plan.kind == CLASSIFIER:
            assert last is not None
            heads[name] = ImageHead(similar_layer(last, plan.num_classes) if taken else last, plan)
            taken = True
            continue
        neck, heads[name] = head_kind(plan.kind).build(plan, trunk)
        if neck is not None:
            necks[name] = neck
    pooled = [name for name, plan in architecture.heads.items() if takes_vector(plan)]
    # maps that only heads without a neck take are all used
    finest = [necks[name].finest if name in necks else 0 for name in heads if name not in pooled]
    if finest:
        trunk.freeze_idle(min(finest), architecture.in_chans)
    network = Network(trunk, necks, heads, batcher, pooled, architecture.uncertainty)
    if architecture.group_norm:
        apply_norm_policy(network, "group")
    return network
