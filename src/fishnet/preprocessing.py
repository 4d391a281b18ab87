"""Preprocessing that pretrained weights expect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

from timm import get_pretrained_cfg
from timm.data import resolve_data_config, resolve_model_data_config
from torch import nn

from fishnet.cards import ModelCard, read_card
from fishnet.config import Interpolation, PreprocessConfig
from fishnet.files import Json
from fishnet.models.checkpoints.pretrained import PRETRAINED
from fishnet.models.create import PUBLISHED, published_weights
from fishnet.runs import describing_file


def preprocessing_of(network: nn.Module) -> tuple[PreprocessConfig, int]:
    """Return the preprocessing of a timm model and its input size in pixels."""
    found = resolve_model_data_config(network)
    return _as_preprocessing(found), int(found["input_size"][-1])


def _as_preprocessing(found: Json) -> PreprocessConfig:
    """Return timm's data configuration in the form of this library."""
    known = get_args(Interpolation)
    return PreprocessConfig(
        crop_pct=float(found["crop_pct"]),
        interpolation=found["interpolation"] if found["interpolation"] in known else "bilinear",
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def preprocessing_of_weights(model: str, weights: str | None) -> Json:
    """Return the preprocessing that weights were trained with, as fields of `PreprocessConfig`.

    Published weights (`pretrained` or a tag) determine all fields. A run and the weights in this package, which were
    trained on small images, determine only mean and std, since the crop depends on the data. Other files determine
    none.

    Args:
        model: Backbone.
        weights: Weights to start from, as in the settings.

    Raises:
        UsageError: `pretrained` for a model without published weights.
        FishnetError: The card of a run is damaged.
    """
    if weights == PUBLISHED:
        weights = published_weights(model)
    if weights == PUBLISHED or weights in PRETRAINED:
        config = get_pretrained_cfg(model if weights == PUBLISHED else f"{PRETRAINED[weights].model}.{weights}")
        assert config is not None
        found = dataclasses.asdict(_as_preprocessing(resolve_data_config(pretrained_cfg=config.to_dict())))
        packaged = weights in PRETRAINED and PRETRAINED[weights].packaged
        return {name: found[name] for name in ("mean", "std")} if packaged else found
    card = _card_of(weights)
    return {} if card is None else {"mean": card.preprocess.mean, "std": card.preprocess.std}


def model_of_weights(weights: str | None) -> str | None:
    """Return the backbone that a tag or a run belongs to; None for other weights.

    Args:
        weights: Weights to start from, as in the settings.

    Raises:
        FishnetError: The card of a run is damaged.
    """
    if weights in PRETRAINED:
        return PRETRAINED[weights].model
    card = _card_of(weights)
    return None if card is None else card.model


def _card_of(weights: str | None) -> ModelCard | None:
    path = describing_file(Path(weights or "").expanduser())
    return read_card(path) if path.suffix == ".safetensors" and path.is_file() else None
