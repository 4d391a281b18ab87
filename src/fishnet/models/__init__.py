"""The FishNet family in plain PyTorch; importing it registers the family with timm."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.config import VARIANTS, FishConfig, FishConfigError
from fishnet.models.fishnet import FishNet
from fishnet.models.norms import note_loaded_norms

__all__ = ["VARIANTS", "FishConfig", "FishConfigError", "FishNet", "create_model", "list_models"]

_MODEL_ARGUMENTS = ("global_pool", "drop_rate", "features_only", "out_indices", "device", "dtype")


def list_models() -> list[str]:
    """Return the names of the members of the family."""
    return list(VARIANTS)


def check_name(name: str) -> None:
    """Raise UsageError for a name that neither the family nor timm knows."""
    if name not in VARIANTS and not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"unknown model '{name}'.{hint} Fish: {', '.join(VARIANTS)}; or any timm model")


def create_model(
    name: str, weights: str | Path | None = None, num_classes: int = 1000, in_chans: int = 3, **config: Any
) -> nn.Module:
    """Build a member of the family, or any model that timm knows.

    Args:
        name: Member of the family (see `list_models`) or a timm name.
        weights: Checkpoint file, run folder or tag (`osmr_in1k`) to load; see `fishnet.load_weights`. With a tag a
            classifier of another size starts fresh; with a file it is an error.
        num_classes: Number of classes; 0 leaves the classifier out.
        in_chans: Channels of the images.
        **config: For the family: fields of `FishConfig`, `global_pool`, `drop_rate`, `features_only`, `out_indices`,
            `device`, `dtype`. For a timm model: its own keywords.

    Returns:
        The model: (N, in_chans, H, W) -> (N, num_classes).

    Raises:
        UsageError: The name or a keyword is unknown, or the values do not make a network.
        FishnetError: The weights cannot be read or do not fit.
    """
    check_name(name)
    if name in VARIANTS:
        known = [field.name for field in fields(FishConfig)] + list(_MODEL_ARGUMENTS)
        for option in config:
            if option not in known:
                hint = did_you_mean(option, known)
                raise UsageError(f"unknown option '{option}' of model {name}.{hint} Options: {', '.join(known)}")
    try:
        model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **config)
    except TypeError as error:
        raise UsageError(f"model {name} cannot be built with {config}: {error}") from error
    if config.get("pretrained"):
        note_loaded_norms(model)
    if weights is not None:
        from fishnet.models.pretrained import PRETRAINED
        from fishnet.models.weights import load_weights

        load_weights(model, weights, skip_classifier="resize" if str(weights) in PRETRAINED else False)
    return model
