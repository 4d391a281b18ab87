"""One switch for the BatchNorms of a network, the same for every task.

Detection and segmentation train on few large images per device, where the statistics of a batch are a poor estimate:
the classic trap. The ways out are to freeze them (with weights from elsewhere), to gather them over all GPUs, or to
normalise groups of channels of a single image instead (Wu & He, Group Normalization, arXiv 1803.08494).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import nn

from fishnet.errors import UsageError

NormPolicy = Literal["train", "frozen", "sync", "group"]
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
FEWEST_IMAGES = 8
GROUPS = 32


class SmallBatchWarning(UserWarning):
    """BatchNorm is trained on so few images per device that its statistics are noise."""


def apply_norm_policy(model: nn.Module, policy: NormPolicy) -> nn.Module:
    """Return the network with its BatchNorms as the policy says; replaced ones keep scale and shift.

    `train` leaves them; `frozen` stops the gradient of scale and shift (`hold_norms` keeps the statistics); `sync`
    shares the statistics of all processes; `group` puts group norms of up to 32 groups in their place.
    """
    if policy == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.requires_grad_(False)
    elif policy == "sync":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif policy == "group":
        return _with_group_norms(model)
    return model


def check_norm_policy(policy: NormPolicy, images_per_device: int, on_gpu: bool, has_batch_norms: bool = True) -> None:
    """Refuse what cannot work and warn of what rarely does.

    Raises:
        UsageError: `sync` on a CPU.
    """
    if policy == "sync" and not on_gpu:
        raise UsageError("--norm sync needs GPUs: synchronised BatchNorm has no CPU version; use frozen or group")
    if policy == "train" and images_per_device < FEWEST_IMAGES and has_batch_norms:
        warnings.warn(
            f"BatchNorm trains on {images_per_device} images per device, fewer than {FEWEST_IMAGES}: its statistics "
            "will be noise. Use --norm frozen (with --weights), --norm group (from scratch), --norm sync (GPUs) or a "
            "larger --batch-size",
            SmallBatchWarning,
            stacklevel=2,
        )


def hold_norms(model: nn.Module, every: bool) -> None:
    """Put the BatchNorms of frozen parts, or all of them, into inference mode."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            frozen = module.weight is not None and not module.weight.requires_grad
            if every or frozen:
                module.eval()


def has_batch_norms(model: nn.Module) -> bool:
    """Whether any BatchNorm of the network is being trained."""
    return any(
        isinstance(module, BATCH_NORMS) and any(p.requires_grad for p in module.parameters())
        for module in model.modules()
    )


def groups_of(channels: int) -> int:
    """Return the number of groups for a group norm: up to 32, of 4 channels at least where that can be."""
    groups = math.gcd(channels, GROUPS)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return groups


def _with_group_norms(module: nn.Module) -> nn.Module:
    """Return the module with every 2-d BatchNorm below it replaced, in its own order and under its own name."""
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.GroupNorm(groups_of(module.num_features), module.num_features, eps=module.eps)
        norm = norm.to(device=module.weight.device, dtype=module.weight.dtype)
        with torch.no_grad():
            norm.weight.copy_(module.weight)
            norm.bias.copy_(module.bias)
        return norm.train(module.training)
    for name, child in module.named_children():
        replaced = _with_group_norms(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module
