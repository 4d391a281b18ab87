"""Norm policies for the BatchNorms of a network, common to all tasks.

Detection and segmentation train on few large images per device, for which batch statistics are a poor estimate.
Remedies: freeze the BatchNorms (with pretrained weights), share their statistics over all GPUs, or replace them by
group norms, which normalize each image alone (Wu & He, Group Normalization, arXiv 1803.08494).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from typing import Literal

import torch
from timm.layers import GroupNormAct, convert_sync_batchnorm
from torch import Tensor, nn

from fishnet.errors import UsageError

NormPolicy = Literal["train", "frozen", "sync", "group"]
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
FEWEST_IMAGES = 8
GROUPS = 32

# Submodules of timm's BatchNorms. `aux_bn` are further BatchNorms for parts of a batch.
_KNOWN_PARTS = {"drop", "act", "aux_bn"}
_LOADED, _HELD, _COUNTED = "loaded_from_weights", "held_in_inference_mode", "batches_counted_once"


class SmallBatchWarning(UserWarning):
    """BatchNorm is trained on too few images per device for its statistics to be reliable."""


def apply_norm_policy(model: nn.Module, policy: NormPolicy) -> nn.Module:
    """Apply a norm policy to the BatchNorms of a network and return the network.

    Args:
        model: Network to change, in place unless it is a BatchNorm itself.
        policy: `train` changes nothing. `frozen` disables the gradients of BatchNorms that were loaded from weights
            (see `note_loaded_norms`; `hold_norms` keeps their statistics); the others are trained. `sync` shares the
            statistics of all processes. `group` replaces BatchNorms by group norms of up to 32 groups. Replaced norms
            keep their scale and shift, and the activation and dropout that timm's BatchNorms contain.

    Raises:
        UsageError: `frozen` without loaded weights; `sync` or `group` for a BatchNorm with unknown submodules.
    """
    if policy == "frozen":
        _freeze_loaded(model)
    elif policy == "sync":
        return _replaced(model, convert_sync_batchnorm, {})
    elif policy == "group":
        return _replaced(model, _group_norm, {})
    return model


def check_norm_policy(policy: NormPolicy, images_per_device: int, on_gpu: bool, has_batch_norms: bool = True) -> None:
    """Refuse a norm policy that cannot work, and warn about batches that are too small for BatchNorm.

    Args:
        policy: Norm policy of the run.
        images_per_device: Number of images in a batch on one device.
        on_gpu: Whether the devices are GPUs.
        has_batch_norms: Whether any BatchNorm is trained (`has_batch_norms`).

    Raises:
        UsageError: `sync` on a CPU.
    """
    if policy == "sync" and not on_gpu:
        raise UsageError("--norm sync needs GPUs: synchronized BatchNorm has no CPU version; use frozen or group")
    if policy not in ("train", "frozen") or images_per_device >= FEWEST_IMAGES or not has_batch_norms:
        return
    which, ways = "BatchNorm trains", "--norm frozen (with --weights), --norm group (from scratch), --norm sync (GPUs)"
    if policy == "frozen":
        which = "BatchNorm that was not loaded from weights trains"
        ways = "--pyramid.norm-relu false, --norm sync (GPUs)"
    warnings.warn(
        f"{which} on {images_per_device} images per device, fewer than {FEWEST_IMAGES}: its statistics will be "
        f"unreliable. Use {ways} or a larger --batch-size",
        SmallBatchWarning,
        stacklevel=2,
    )


def note_loaded_norms(model: nn.Module, loaded: Collection[str] | None = None) -> None:
    """Mark the BatchNorms whose scale, shift and statistics were loaded from weights; copies keep the mark.

    Args:
        model: Network that weights were loaded into.
        loaded: Names of the loaded tensors; None means all.
    """
    _mark(model, _LOADED)
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            prefix = f"{name}." if name else ""
            own = [key for key, value in module.named_parameters(recurse=False)]
            own += [key for key in ("running_mean", "running_var") if getattr(module, key) is not None]
            if loaded is None or all(prefix + key in loaded for key in own):
                _mark(module, _LOADED)


def loaded_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules that `note_loaded_norms` marked."""
    return [name for name, module in model.named_modules() if _LOADED in module.__dict__]


def mark_loaded_modules(model: nn.Module, names: Collection[str]) -> None:
    """Mark modules as `note_loaded_norms` marked them in an equal network; the network itself has the name ""."""
    for name in names:
        _mark(model.get_submodule(name), _LOADED)


def hold_norms(model: nn.Module) -> list[nn.Module]:
    """Set frozen BatchNorms to eval mode, in which they use their running statistics without updating them.

    Returns:
        The frozen BatchNorms.
    """
    frozen: list[nn.Module] = [module for module in _batch_norms(model) if _is_frozen(module)]
    for module in frozen:
        module.training = False  # not its submodules: the dropout in timm's BatchNorms stays active
    return frozen


def count_batches_once(model: nn.Module) -> None:
    """Let BatchNorms update their running statistics in the forward pass of a network only.

    Parts that activation checkpointing runs again, in the backward pass, would count their batch twice.
    """
    if _COUNTED not in model.__dict__:
        _mark(model, _COUNTED)
        once = _OnceCounted()
        model.register_forward_pre_hook(once.enter)
        model.register_forward_hook(once.leave, always_call=True)
        for norm in _batch_norms(model):
            norm.register_forward_pre_hook(once.before)
            norm.register_forward_hook(once.after, always_call=True)  # recomputation ends early by an exception


class _OnceCounted:
    """Hooks that keep the running statistics of BatchNorms outside of the forward pass of their network."""

    def __init__(self) -> None:
        self.inside = False
        self.kept: tuple[float | None, Tensor | None] | None = None

    def enter(self, network: nn.Module, inputs: object) -> None:
        self.inside = True

    def leave(self, network: nn.Module, inputs: object, output: object) -> None:
        self.inside = False

    def before(self, norm: nn.modules.batchnorm._BatchNorm, inputs: object) -> None:
        if norm.training and not self.inside and not torch.compiler.is_compiling():  # the compiler counts once
            self.kept = norm.momentum, norm.num_batches_tracked
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def after(self, norm: nn.modules.batchnorm._BatchNorm, inputs: object, output: object) -> None:
        if self.kept is not None:
            (norm.momentum, norm.num_batches_tracked), self.kept = self.kept, None


def has_batch_norms(model: nn.Module) -> bool:
    """Return whether any BatchNorm of the network is trained."""
    return not all(_is_frozen(module) for module in _batch_norms(model))


def groups_of(channels: int) -> int:
    """Return the number of groups of a group norm: up to 32, with at least 4 channels per group where possible."""
    groups = math.gcd(channels, GROUPS)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return groups


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


def _mark(module: nn.Module, mark: str) -> None:
    module.__dict__[mark] = True


def _is_frozen(norm: nn.Module) -> bool:
    """Return whether a BatchNorm is frozen by the policy, or all of its parameters are."""
    own = list(norm.parameters(recurse=False))
    return _HELD in norm.__dict__ or (bool(own) and not any(p.requires_grad for p in own))


def _freeze_loaded(model: nn.Module) -> None:
    """Freeze the BatchNorms that were loaded from weights, but not the activations inside timm's BatchNorms."""
    norms = _batch_norms(model)
    if norms and not any(_LOADED in module.__dict__ for module in model.modules()):
        raise UsageError(
            "--norm frozen freezes BatchNorms that were loaded from weights, and no weights are loaded: add --weights, "
            "or use --norm group or --norm train to train from scratch"
        )
    for norm in norms:
        if _LOADED in norm.__dict__:
            _mark(norm, _HELD)
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)


def _replaced(module: nn.Module, make: Callable[[nn.Module], nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return the module with every BatchNorm in it replaced; shared BatchNorms stay shared, the order is kept."""
    if isinstance(module, BATCH_NORMS):
        if module not in done:
            if more := {name for name, _ in module.named_children()} - _KNOWN_PARTS:
                raise UsageError(
                    f"--norm: cannot replace {type(module).__name__}, a BatchNorm with its own submodules "
                    f"({', '.join(sorted(more))}); use --norm train or --norm frozen"
                )
            done[module] = make(module)
        return done[module]
    for name, child in list(module._modules.items()):  # named_children omits the second name of a shared module
        if child is not None and (replaced := _replaced(child, make, done)) is not child:
            module.register_module(name, replaced)
    return module


def _group_norm(norm: nn.Module) -> nn.Module:
    """Return the group norm that replaces a BatchNorm; BatchNorm1d becomes a group norm with one group."""
    assert isinstance(norm, BATCH_NORMS)
    groups = 1 if isinstance(norm, nn.BatchNorm1d) else groups_of(norm.num_features)
    made: nn.GroupNorm
    parts = {name: part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None}
    if parts:
        made = GroupNormAct(norm.num_features, groups, norm.eps, norm.affine, apply_act=False)
        for name, part in parts.items():
            setattr(made, name, part)
    else:
        made = nn.GroupNorm(groups, norm.num_features, norm.eps, norm.affine)
    if norm.affine:
        made = made.to(device=norm.weight.device, dtype=norm.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
            made.weight.requires_grad_(norm.weight.requires_grad)
            made.bias.requires_grad_(norm.bias.requires_grad)
    made.training = norm.training
    return made


def gradients_with_fixed_statistics(
    gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, eps: float, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by maps, weight and bias of a BatchNorm whose mean and variance (C,) are constants.

    Args:
        gradient: Gradient by the normalized maps (N, C, H, W).
        x: Maps (N, C, H, W).
        weight: Weight (C,), or None.
        mean: Mean of each channel (C,).
        variance: Variance of each channel (C,).
        eps: Constant that is added to the variance.
        wanted: Which of the three gradients to compute.
    """
    unused = mean.new_empty(0)  # statistics of the batch; kernels of GPUs do not take None without gradient by the maps
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, mean, variance, unused, unused, False, eps, wanted
    )
    return found
