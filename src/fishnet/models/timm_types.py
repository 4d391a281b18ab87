"""Types of the parts of timm's networks that this library uses; timm itself annotates few of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.models._features import FeatureInfo
from torch import Tensor, nn

ModelOptions = dict[str, Any]
"""Keyword arguments of `fishnet.create_model`: fields of `FishConfig`, or the arguments of a timm model."""

Pattern = str | tuple[str, tuple[int, ...] | None]
"""Regular expression of parameter names, alone or with the position of its group among the layers."""
LayerGroups = dict[str, Pattern | list[Pattern]]
"""timm's description of layer groups by name, from the input to the output."""


class TimmClassifier(nn.Module):
    """Attributes of timm's classifiers. A declaration only: no network inherits from it."""

    head_hidden_size: int
    pretrained_cfg: Mapping[str, object]
    feature_info: list[dict[str, object]]
    forward_intermediates: Callable[..., tuple[Tensor, list[Tensor]]]
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]
    group_matcher: Callable[..., LayerGroups]
    set_grad_checkpointing: Callable[[bool], None]


class TimmFeatures(nn.Module):
    """Attributes of timm's networks with `features_only=True`. A declaration only."""

    feature_info: FeatureInfo
