"""Optimizer and schedule from settings, and a resumed run that follows settings which have changed."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from fishnet.config import OptimConfig, TrainConfig

Checkpoint = dict[str, Any]
"""State of a run, as Lightning writes it."""
PARAMETERS = "optimizer_parameters"
"""Entry of a checkpoint: names of the parameters in the order in which the optimizer's state numbers them."""


def base_lr(config: TrainConfig) -> float:
    """Return the rate at the top of the schedule: `lr` as it is, or `optim.lr` scaled from 256 images to the batch."""
    return config.lr if config.lr is not None else config.optim.lr * config.batch_size / 256


def lr_share(optim: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the share of the base rate at an optimizer step, counted from 0."""
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
    return optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return timm's optimizer for the settings; with layer decay, groups follow the model's `group_matcher`."""
    optim = config.optim
    name = "momentum" if optim.name == "sgd" and not optim.nesterov else optim.name
    momentum = {"momentum": optim.momentum} if optim.name == "sgd" else {"betas": (optim.momentum, 0.999)}
    optimizer = create_optimizer_v2(
        model,
        opt=name,
        lr=base_lr(config),
        weight_decay=optim.weight_decay,
        filter_bias_and_bn=not optim.decay_all,
        layer_decay=optim.layer_decay,
        **momentum,
    )
    for group in optimizer.param_groups:  # timm leaves the layer's share to its own schedulers
        group["lr"] *= group.pop("lr_scale", 1.0)
    return optimizer


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of an optimizer's parameters in the order in which its state numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def follow_settings(checkpoint: Checkpoint, optimizer: Optimizer, model: nn.Module, share: float) -> None:
    """Rewrite the states of optimizer and schedule in a checkpoint as the settings of a fresh optimizer have them.

    Rates, weight decay, momentum factors and grouping become those of `optimizer`; what was accumulated per parameter
    (momentum buffers, moments) stays with the parameter of its name. With unchanged settings nothing changes.

    Args:
        checkpoint: Loaded checkpoint with `PARAMETERS`, changed in place.
        optimizer: Optimizer as `build_optimizer` returns it; its groups are scheduled.
        model: Network whose parameters it holds.
        share: Share of the base rate at the optimizer step that the checkpoint holds.
    """
    saved, schedule = checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    kept = {name: saved["state"][place] for place, name in enumerate(checkpoint[PARAMETERS]) if place in saved["state"]}
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        group["lr"] = group["initial_lr"] * share
        for name, value in saved["param_groups"][0].items():
            group.setdefault(name, deepcopy(value))  # what an optimizer counts per group, as LAMB its steps
    state = optimizer.state_dict()
    state["state"] = {place: kept[name] for place, name in enumerate(parameter_names(optimizer, model)) if name in kept}
    checkpoint["optimizer_states"] = [state]
    schedule["base_lrs"] = [group["initial_lr"] for group in optimizer.param_groups]
    schedule["_last_lr"] = [group["lr"] for group in optimizer.param_groups]
