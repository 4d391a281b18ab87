"""Build networks: the one place where they are assembled, for training and for loading.

An `Architecture` is plain data: backbone, heads and norms. It is stored in the card of a model file, from which the
same network is built again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.build_trunk import build_trunk, split
from fishnet.models.heads.detectors import DETECTORS, RegionPlan, build_region_head, check_region_plan
from fishnet.models.heads.image import ClassifierPlan, ImageHead, similar_layer
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Batcher, Network
from fishnet.models.norms import apply_norm_policy
from fishnet.models.pyramid import Pyramid
from fishnet.models.timm_types import ModelOptions
from fishnet.models.trunk import Taps, Trunk

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel means and standard deviations of ImageNet images in 0..1."""


Plan = TypeVar("Plan", bound=HeadPlan)


class HeadKind(NamedTuple, Generic[Plan]):
    """How heads of one kind are described and built."""

    plan: type[Plan]
    """Frozen dataclass with the field `kind`, and `num_classes` if the head predicts classes."""
    build: Callable[[Plan, Trunk], tuple[Pyramid | None, nn.Module]]
    """Plan and trunk -> neck (None if the head needs none) and head."""
    check: Callable[[Plan], None] | None = None
    """Raises UsageError for a plan from which no head can be built."""
    takes: Literal["maps", "vector"] = "maps"
    """Input of the head: maps, those of its neck if it has one, or the pooled features of the trunk."""


CLASSIFIER = "classifier"
"""Kind of the heads that take over the last layer of the backbone."""
HEADS: dict[str, HeadKind[Any]] = {
    name: HeadKind(RegionPlan, build_region_head, check_region_plan) for name in DETECTORS
}
"""Every other kind of head by name; other packages add theirs with `register_head`."""


def register_head(name: str, kind: HeadKind[Plan]) -> None:
    """Register a kind of head, for plans with `kind=name`.

    Args:
        name: Value of `kind` in the plans.
        kind: How the heads are described and built.

    Raises:
        UsageError: Another kind is registered under the name.
    """
    if name == CLASSIFIER or HEADS.get(name, kind) != kind:
        raise UsageError(f"a head named {name!r} is already registered; choose another name")
    HEADS[name] = kind


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
    plan = _kind_of(kind).plan
    return plan(**_known_fields(plan, values, str(kind)))


def _kind_of(name: object) -> HeadKind[Any]:
    if name not in HEADS:
        problems = _load_other_tasks()
        if name not in HEADS:
            known = [CLASSIFIER, *HEADS]
            near = did_you_mean(str(name), known)
            raise UsageError(f"unknown head {name!r}.{near} Known are {', '.join(known)}{problems}")
    return HEADS[name]


def _load_other_tasks() -> str:
    """Import the tasks of other packages, which registers their heads; return which could not be imported."""
    problems = []
    for entry in metadata.entry_points(group="fishnet.tasks"):
        try:
            entry.load()
        except Exception as error:  # a package of somebody else may raise anything when it is imported
            problems.append(f"; {entry.value} cannot be imported: {error}")
    return "".join(problems)


def _takes_vector(plan: HeadPlan) -> bool:
    return plan.kind == CLASSIFIER or _kind_of(plan.kind).takes == "vector"


def _known_fields(kind: type, values: Mapping[str, object], what: str) -> dict[str, Any]:
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{what} has no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def build_network(
    architecture: Architecture,
    weights: str | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
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
        FishnetError: The weights cannot be read or do not fit.
    """
    plans = dict(architecture.heads)
    for plan in plans.values():
        if plan.kind != CLASSIFIER and (check := _kind_of(plan.kind).check):
            check(plan)
    classifier = next((plan for plan in plans.values() if plan.kind == CLASSIFIER), None)
    trunk, last = build_trunk(
        architecture.backbone,
        taps=None if all(_takes_vector(plan) for plan in plans.values()) else architecture.taps,
        vector=any(_takes_vector(plan) for plan in plans.values()),
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
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
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
        neck, heads[name] = _kind_of(plan.kind).build(plan, trunk)
        if neck is not None:
            necks[name] = neck
    pooled = [name for name, plan in architecture.heads.items() if _takes_vector(plan)]
    # maps that only heads without a neck take are all used
    finest = [necks[name].finest if name in necks else 0 for name in heads if name not in pooled]
    if finest:
        trunk.freeze_idle(min(finest), architecture.in_chans)
    network = Network(trunk, necks, heads, batcher, pooled)
    if architecture.group_norm:
        apply_norm_policy(network, "group")
    return network
