"""Optimizer and schedule from settings, also for a resumed run with changed settings."""

from __future__ import annotations

import inspect
import math
from copy import deepcopy
from typing import Any, cast

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from fishnet.config import OptimConfig, TrainConfig
from fishnet.errors import UsageError, did_you_mean
from fishnet.training.parts import part_rates

Checkpoint = dict[str, Any]
"""Checkpoint in the format of Lightning."""
PARAMETERS = "optimizer_parameters"
"""Entry of a checkpoint: names of the parameters in the order in which the optimizer's state numbers them."""


def base_lr(config: TrainConfig) -> float:
    """Return the peak learning rate: `lr`, or `optim.lr` scaled linearly from 256 images to the batch size."""
    return config.lr if config.lr is not None else config.optim.lr * config.batch_size / 256


def lr_share(optim: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the factor of the base learning rate at an optimizer step, counted from 0."""
    warmup = optim.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "step" and optim.step_at:
        return optim.step_gamma ** sum(step >= epoch * steps_per_epoch for epoch in optim.step_at)
    if optim.schedule == "step":
        return optim.step_gamma ** (step // (optim.step_epochs * steps_per_epoch))
    progress = min(1.0, (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup))
    if optim.schedule == "poly":
        return optim.final_lr + (1 - optim.final_lr) * (1 - progress) ** optim.power
    return optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_names() -> list[str]:
    """Return the names of timm's optimizers, except those that need another package or second derivatives."""
    names = [str(name) for name in list_optimizers(exclude_filters=["bnb*", "fused*", "kron*"])]
    return [name for name in names if not get_optimizer_info(name).second_order]


def check_optimizer(name: str) -> None:
    """Raise UsageError for an unknown optimizer."""
    if name not in (names := optimizer_names()):
        hint = did_you_mean(name, names)
        raise UsageError(
            f"optim.name: unknown optimizer {name!r}.{hint} Common ones are sgd, adamw, lamb and lion; fishnet info "
            f"optimizers lists all"
        )


def describe_optimizers() -> str:
    """Return a table of all optimizers with a short description."""
    lines = [f"  {name:<16}{get_optimizer_info(name).description}" for name in optimizer_names()]
    return "\n".join(["optimizers (fishnet train TASK --optim.name NAME)", "", *lines])


def _arguments(config: TrainConfig) -> dict[str, Any]:
    """Return the keyword arguments of the optimizer: its momentum or first beta, and for SGD, Adam and AdamW `fused`.

    Fused optimizers update all parameters in one kernel. They are not used with fp16, where they unscale gradients in
    `step`, but gradients must be unscaled before they are clipped.
    """
    info, momentum = get_optimizer_info(config.optim.name), config.optim.momentum
    found: dict[str, Any] = {}
    if info.opt_class in (SGD, Adam, AdamW) and config.precision != "fp16":
        found["fused"] = True
    if info.has_momentum:
        return {**found, "momentum": momentum}
    betas = inspect.signature(cast(type[Optimizer], info.opt_class)).parameters.get("betas")
    return found if betas is None or betas.default is None else {**found, "betas": (momentum, *betas.default[1:])}


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return timm's optimizer for the settings; layer decay follows the `group_matcher` of the model.

    Raises:
        UsageError: `optim.part_lr` names an unknown part, or a factor is not a positive number.
    """
    optim = config.optim
    name = "momentum" if optim.name == "sgd" and not optim.nesterov else optim.name
    optimizer = create_optimizer_v2(
        model,
        opt=name,
        lr=base_lr(config),
        weight_decay=optim.weight_decay,
        filter_bias_and_bn=not optim.decay_all,
        layer_decay=optim.layer_decay,
        **_arguments(config),
    )
    for group in optimizer.param_groups:  # timm applies the scale of a layer only in its own schedulers
        group["lr"] *= group.pop("lr_scale", 1.0)
    _scale_parts(optimizer, part_rates(model, optim))
    return optimizer


def _scale_parts(optimizer: Optimizer, factors: dict[nn.Parameter, float]) -> None:
    """Divide parameter groups so that every parameter has its factor of the learning rate."""
    groups = []
    for group in optimizer.param_groups:
        divided: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            divided.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        groups += [{**group, "params": own, "lr": factor * group["lr"]} for factor, own in divided.items()]
    optimizer.param_groups[:] = groups


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of the parameters of an optimizer, in the order of its state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def follow_settings(checkpoint: Checkpoint, optimizer: Optimizer, model: nn.Module, share: float) -> None:
    """Rewrite the optimizer and schedule state of a checkpoint for a new optimizer.

    Learning rates, weight decay, momentum and parameter groups are taken from `optimizer`; the state of each parameter
    (momentum buffers, moments) is kept by its name. With equal settings nothing changes.

    Args:
        checkpoint: Loaded checkpoint with `PARAMETERS`, changed in place.
        optimizer: Optimizer that `build_optimizer` returned; its groups are changed in place.
        model: Network with the parameters.
        share: Factor of the base learning rate at the optimizer step of the checkpoint.
    """
    saved, schedule = checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    kept = {name: saved["state"][place] for place, name in enumerate(checkpoint[PARAMETERS]) if place in saved["state"]}
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        group["lr"] = group["initial_lr"] * share
        for name, value in saved["param_groups"][0].items():
            group.setdefault(name, deepcopy(value))  # state that an optimizer has per group, such as the steps of LAMB
    state = optimizer.state_dict()
    state["state"] = {place: kept[name] for place, name in enumerate(parameter_names(optimizer, model)) if name in kept}
    checkpoint["optimizer_states"] = [state]
    schedule["base_lrs"] = [group["initial_lr"] for group in optimizer.param_groups]
    schedule["_last_lr"] = [group["lr"] for group in optimizer.param_groups]
