"""Parts of a network by name: frozen parts, and parts with a separate learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from fishnet.config import OptimConfig, named_numbers
from fishnet.errors import UsageError, did_you_mean
from fishnet.models.network import Network


def find_parts(model: Network, parts: Sequence[str], setting: str) -> list[nn.Module]:
    """Return modules of a network by name.

    Parts of the backbone are named without a prefix, such as `stem`; others by their module name, such as
    `heads.region`.

    Args:
        model: Network.
        parts: Names.
        setting: Name of the setting, for messages.

    Raises:
        UsageError: The network has no part of that name.
    """
    owners = (model, model.trunk.backbone)
    modules = {name: module for owner in owners for name, module in owner.named_modules() if name}
    for part in parts:
        if part not in modules:
            known = [name for owner in reversed(owners) for name, _ in owner.named_children()]
            near = did_you_mean(part, modules)
            raise UsageError(f"{setting}: {part!r} is not a part of the model (parts: {', '.join(known)}).{near}")
    return [modules[part] for part in parts]


def freeze(model: Network, parts: Sequence[str]) -> None:
    """Disable gradients of the named parts of a network; their BatchNorm statistics are kept too.

    Raises:
        UsageError: The network has no part of that name.
    """
    for module in find_parts(model, parts, "freeze"):
        module.requires_grad_(False)


def part_rates(model: nn.Module, optim: OptimConfig) -> dict[nn.Parameter, float]:
    """Return the factors of the learning rates of parameters by `optim.part_lr`; others have the factor 1.

    Raises:
        UsageError: The network has no part of that name, or a factor is not a positive number.
    """
    factors = named_numbers("optim.part_lr", optim.part_lr)
    if not factors:
        return {}
    if wrong := [value for value in factors.values() if not 0 < value < float("inf")]:
        raise UsageError(f"optim.part_lr: a factor is {wrong[0]}; it must be positive")
    modules = find_parts(cast(Network, model), list(factors), "optim.part_lr")
    sized = sorted(zip(modules, factors.values(), strict=True), key=lambda part: -len(list(part[0].modules())))
    return {parameter: factor for module, factor in sized for parameter in module.parameters()}  # inner parts are last
