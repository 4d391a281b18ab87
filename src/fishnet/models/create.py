"""Create models by name: members of the family, and any timm network."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.config import VARIANTS, FishConfig
from fishnet.models.norms import note_loaded_norms

PUBLISHED = "pretrained"
"""Value of `weights` that selects the published weights of a model, whatever their tag."""
SUFFIXES = (".pt", ".pth", ".safetensors", ".ckpt", ".tar", ".onnx")
_MODEL_ARGUMENTS = ("global_pool", "drop_rate", "features_only", "out_indices", "device", "dtype")


def list_models() -> list[str]:
    """Return the names of all FishNets."""
    return list(VARIANTS)


def check_name(name: str) -> None:
    """Raise UsageError for a name that is neither a FishNet nor a timm model."""
    if name not in VARIANTS and not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name.lower(), [name.lower()] if name.lower() in VARIANTS else timm.list_models())
        if name.endswith(SUFFIXES):
            hint += " A file of weights is given by --weights, beside the --model that it belongs to."
        raise UsageError(f"unknown model '{name}'.{hint} FishNets: {', '.join(VARIANTS)}; any timm model works too")


def published_weights(name: str) -> str:
    """Return the weights that `weights="pretrained"` loads: the tag for a FishNet, `pretrained` for a timm model.

    Raises:
        UsageError: No weights are published for the model, or none under the tag in its name.
    """
    from fishnet.models.checkpoints.pretrained import PRETRAINED

    member, _, wanted = name.partition(".")
    if member in VARIANTS:
        tags = [tag for tag, entry in PRETRAINED.items() if entry.model == member and wanted in ("", tag)]
        if not tags:
            known = ", ".join(f"{tag} of {entry.model}" for tag, entry in PRETRAINED.items())
            raise UsageError(f"{name} has no published weights (known: {known}); give --weights a run or a checkpoint")
        return tags[0]
    check_name(name)
    published = timm.list_pretrained(f"{member}.*")
    config = timm.get_pretrained_cfg(name) if not wanted or name in published else None
    if config is None or not config.has_weights:
        hint = f"; available are {', '.join(published)}" if published else ""
        raise UsageError(f"timm has no pretrained weights of {name}{hint}")
    return PUBLISHED


def create_model(
    name: str, weights: str | Path | None = None, num_classes: int = 1000, in_chans: int = 3, **config: Any
) -> nn.Module:
    """Build a FishNet or any timm model.

    Args:
        name: Name of a FishNet (see `list_models`) or of a timm model.
        weights: Checkpoint file, run folder or tag (`osmr_in1k`, `cifar10`) to load; see `fishnet.load_weights`.
            `pretrained` loads the published weights of the model. With `pretrained` or a tag, a classifier of another
            size keeps its initial weights; with a file it is an error.
        num_classes: Number of classes; 0 builds the model without a classifier.
        in_chans: Number of channels of the images.
        **config: For a FishNet: fields of `FishConfig`, `global_pool`, `drop_rate`, `features_only`, `out_indices`,
            `device`, `dtype`. For a timm model: its own keyword arguments.

    Returns:
        The model: (N, in_chans, H, W) -> (N, num_classes).

    Raises:
        UsageError: The name or a keyword argument is unknown, or the values do not fit together.
        FishnetError: The weights cannot be read or do not fit.
    """
    check_name(name)
    if name in VARIANTS:
        known = [field.name for field in fields(FishConfig)] + list(_MODEL_ARGUMENTS)
        if "pretrained" in config:
            raise UsageError(
                f"pretrained= is an argument of timm.create_model; here, weights={PUBLISHED!r} downloads the weights"
            )
        for option in config:
            if option not in known:
                hint = did_you_mean(option, known)
                raise UsageError(f"unknown option '{option}' of model {name}.{hint} Options: {', '.join(known)}")
    if weights == PUBLISHED:
        weights = published_weights(name)
    if weights == PUBLISHED:
        weights, config = None, {**config, "pretrained": True}
    if config.get("pretrained") and name not in VARIANTS and "pretrained_cfg_overlay" not in config:
        from fishnet.models.checkpoints.hub import check_published

        check_published(name)
    try:
        model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **config)
    except TypeError as error:
        raise UsageError(f"model {name} cannot be built with {config}: {error}") from error
    if config.get("pretrained"):
        note_loaded_norms(model)
    if weights is not None:
        from fishnet.models.checkpoints.pretrained import PRETRAINED
        from fishnet.models.checkpoints.weights import load_weights

        load_weights(model, weights, skip_classifier="resize" if str(weights) in PRETRAINED else False)
    return model
