"""Guess of the timm model that a checkpoint belongs to, for messages about weights that do not match."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor

CANDIDATES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "seresnet50",
    "convnext_atto", "convnext_tiny", "convnext_small", "convnext_base", "convnextv2_tiny", "efficientnet_b0",
    "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "mobilenetv2_100", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilenetv4_conv_medium", "regnetx_016", "regnety_016",
    "regnety_032", "densenet121", "vgg16", "vgg16_bn", "hrnet_w18", "vit_tiny_patch16_224", "vit_small_patch16_224",
    "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224",
)  # fmt: skip
_ENOUGH = 0.95


def guess_timm_model(state: Mapping[str, Tensor]) -> str | None:
    """Return the candidate whose tensors, but for the last layer, are in a state dict; None if there is none."""
    shapes = {key.removeprefix("module."): tuple(value.shape) for key, value in state.items()}
    best, share = None, _ENOUGH
    for name in CANDIDATES:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0).state_dict()
        fits = sum(shapes.get(key) == tuple(value.shape) for key, value in own.items())
        if fits / max(1, len(own)) > share and len(own) > 0.8 * len(shapes):
            best, share = name, fits / len(own)
    return best
