"""Small fish and fixed images for the tests of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fishnet.models import FishNet, create_model

ABLATIONS: list[dict[str, Any]] = [
    {"downsample": "max3"},
    {"downsample": "avg"},
    {"downsample": "conv"},
    {"upsample": "bilinear"},
    {"upsample": "deconv"},
    {"reduction": "conv1x1"},
    {"dilation": False},
    {"gate": False},
    {"group_width": 4, "bottleneck": 0.5},
    {"stem_stride": 2},
    {"stem_stride": 1},
    {"output_stride": 16},
    {"output_stride": 8},
]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def nano(**options: Any) -> FishNet:
    torch.manual_seed(0)
    model = create_model("fishnet_nano", num_classes=10, **options)
    assert isinstance(model, FishNet)
    return model


def shallow(**options: Any) -> FishNet:
    """Return a fish with one block per stage, for what takes long per block."""
    return nano(**{"tail_depths": (1, 1, 1), "head_depths": (1, 1, 1), "transfer_depths": (0, 0, 0, 0, 0, 1)} | options)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every norm statistics and an affine map of its own, so that none is the identity."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in ((norm.weight.data, 0.5), (norm.bias.data, -0.5), (norm.running_var, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
    return model.eval()


def norm_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
