"""The one place where networks are put together, for training and for loading.

An `Architecture` is plain data: it says which backbone, which heads, which norms. It is stored in the card of a model
file, and builds the same network again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.heads.detectors import DETECTORS, RegionPlan, build_region_head, check_region_plan
from fishnet.models.heads.image import ClassifierPlan, ImageHead
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Batcher, Network
from fishnet.models.norms import apply_norm_policy
from fishnet.models.pyramid import Pyramid
from fishnet.models.timm_types import ModelOptions
from fishnet.models.trunk import Taps, Trunk, build_trunk, split

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel means and standard deviations of ImageNet, for images in 0..1."""


Plan = TypeVar("Plan", bound=HeadPlan)


class HeadKind(NamedTuple, Generic[Plan]):
    """How the heads of a kind are described and built."""

    plan: type[Plan]
    """Frozen dataclass with the fields `kind` and `num_classes`."""
    build: Callable[[Plan, Trunk], tuple[Pyramid | None, nn.Module]]
    """Plan and trunk -> neck, where the head takes maps, and head."""
    check: Callable[[Plan], None] | None = None
    """Raises UsageError for a plan of which no head can be built."""


HEADS: dict[str, HeadKind[Any]] = {
    name: HeadKind(RegionPlan, build_region_head, check_region_plan) for name in DETECTORS
}
"""Every kind of head that takes maps, by name; a task of another package adds its own with `register_head`."""


def register_head(name: str, kind: HeadKind[Plan]) -> None:
    """Make a kind of head known, for plans that name it.

    Args:
        name: What a plan's `kind` says.
        kind: How it is described and built; its head takes the maps of a neck.

    Raises:
        UsageError: The name is taken.
    """
    if name == "classifier" or HEADS.get(name, kind) != kind:
        raise UsageError(f"there is a head of the name {name!r} already")
    HEADS[name] = kind


@dataclass(frozen=True)
class Architecture:
    """Everything that builds a network again."""

    backbone: str
    """Member of the family or timm name."""
    heads: Mapping[str, Any]
    """Plan of each head, by the head's name."""
    options: ModelOptions = field(default_factory=dict)
    """Keywords of the backbone."""
    in_chans: int = 3
    """Channels of the images."""
    taps: Taps = "head"
    """Stages of a fish that give maps."""
    group_norm: bool = False
    """Group norms in place of all BatchNorms."""

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Architecture:
        """Return the architecture that `to_dict` wrote.

        Raises:
            UsageError: A field or a kind of head that this version does not know.
        """
        plain = _known_fields(cls, values, "an architecture")
        plain["heads"] = {name: plan_of(entry) for name, entry in dict(plain["heads"]).items()}
        return cls(**plain)


def plan_of(values: Mapping[str, object]) -> HeadPlan:
    """Return the plan of a head from plain values.

    Raises:
        UsageError: Its kind or one of its fields is unknown.
    """
    kind = values.get("kind")
    if kind == "classifier":
        return ClassifierPlan(**_known_fields(ClassifierPlan, values, "a classifier"))
    plan = _kind_of(kind).plan
    return plan(**_known_fields(plan, values, str(kind)))


def _kind_of(name: object) -> HeadKind[Any]:
    if name not in HEADS:
        known = ["classifier", *HEADS]
        raise UsageError(f"unknown head {name!r}.{did_you_mean(str(name), known)} Known are {', '.join(known)}")
    return HEADS[name]


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
    """Return the network of an architecture.

    Args:
        architecture: What to build.
        weights: Run, checkpoint or tag whose trunk is taken over, with its classifier where that has the same size;
            `pretrained` stands for those of timm or of the fish's tag. None starts fresh.
        mean: Channel means of images in 0..1, for batches that the network normalises itself.
        std: Channel standard deviations of these images.

    Raises:
        UsageError: A name or number that makes no network.
        FishnetError: The weights cannot be read or do not fit.
    """
    plans = dict(architecture.heads)
    for plan in plans.values():
        if plan.kind != "classifier" and (check := _kind_of(plan.kind).check):
            check(plan)
    classifier = next((plan for plan in plans.values() if plan.kind == "classifier"), None)
    maps = any(plan.kind != "classifier" for plan in plans.values())
    trunk, last = build_trunk(
        architecture.backbone,
        taps=architecture.taps if maps else None,
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
    """Return a whole classifier as the network of an architecture that has an image head only; its modules are shared.

    Args:
        whole: Classifier, of the family or of timm.
        architecture: What the network is said to be.
        mean: Channel means of images in 0..1, for batches that the network normalises itself.
        std: Channel standard deviations of these images.
    """
    trunk, last = split(whole)
    return _assemble(trunk, last, architecture, Batcher(mean, std, 1))


def _assemble(trunk: Trunk, last: nn.Module | None, architecture: Architecture, batcher: Batcher) -> Network:
    necks: dict[str, Pyramid] = {}
    heads: dict[str, nn.Module] = {}
    for name, plan in architecture.heads.items():
        if plan.kind == "classifier":
            assert last is not None
            heads[name] = ImageHead(last, plan)
            continue
        neck, heads[name] = HEADS[plan.kind].build(plan, trunk)
        if neck is not None:
            necks[name] = neck
    if necks:
        trunk.freeze_idle(min(neck.finest for neck in necks.values()), architecture.in_chans)
    network = Network(trunk, necks, heads, batcher)
    if architecture.group_norm:
        apply_norm_policy(network, "group")
    return network
