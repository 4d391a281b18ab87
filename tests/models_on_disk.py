"""Model files of small classifiers, as a run leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.config import PreprocessConfig
from fishnet.models.build import Architecture, as_network
from fishnet.models.heads.image import ClassifierPlan


def classifier_card(
    classes: Sequence[str],
    name: str = "fishnet_nano",
    options: Mapping[str, Any] | None = None,
    *,
    in_chans: int = 3,
    multi_label: bool = False,
    **fields: Any,
) -> ModelCard:
    """Return the card of a classifier for images of 32 pixels; `fields` are further fields of the card."""
    plan = ClassifierPlan(num_classes=len(classes), multi_label=multi_label)
    architecture = Architecture(name, {"image": plan}, dict(options or {}), in_chans=in_chans)
    heads = {"image": HeadCard(list(classes))}
    usual = {"task": "classification", "architecture": architecture, "heads": heads, "size": 32}
    return ModelCard(**{**usual, "preprocess": PreprocessConfig(), **fields})


def save_classifier(path: Path, plain: nn.Module, card: ModelCard) -> Path:
    """Write a copy of a plain classifier as the network of its card; the plain one stays whole, to compare with."""
    save_model(path, as_network(deepcopy(plain), card.architecture), card)
    return path
