"""Loading of classifier weights without a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fishnet.cards import HeadCard, ModelCard
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.models.build import Architecture, as_network
from fishnet.models.checkpoints.weights import classifier_size, load_weights, read_checkpoint
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network
from fishnet.preprocessing import preprocessing_of
from fishnet.tasks.classification.task import HEAD


def load_foreign(path: Path, model: str, classes: Sequence[str] | None) -> tuple[Network, ModelCard]:
    """Load the classifier of a weights file without a card.

    Args:
        path: Weights file.
        model: Backbone, a member of the family or a timm name.
        classes: Class names; None names the classes by their index.

    Raises:
        FishnetError: The weights do not fit, or have no classifier.
        UsageError: The number of class names is wrong.
    """
    count = _count_classes(path, model)
    if classes and len(classes) != count:
        raise UsageError(f"{len(classes)} class names are given, but {path} has {count} classes")
    whole: torch.nn.Module = create_model(model, num_classes=count)
    group_norm = load_weights(whole, path, follow_norms=True).group_norms
    architecture = Architecture(model, {HEAD: ClassifierPlan(num_classes=count)}, group_norm=group_norm)
    preprocess, size = preprocessing_of(whole)
    head = HeadCard(list(classes)) if classes else HeadCard([str(i) for i in range(count)], {"unnamed_classes": True})
    card = ModelCard("classification", architecture, {HEAD: head}, size, preprocess)
    return as_network(whole, architecture, preprocess.mean, preprocess.std), card


def _count_classes(path: Path, model: str) -> int:
    """Return the number of classes of a weights file from the shape of its classifier."""
    from timm import get_pretrained_cfg, is_model

    state = read_checkpoint(path)
    config = get_pretrained_cfg(model) if is_model(model.partition(".")[0]) else None
    named = getattr(config, "classifier", None) or ()
    for name in (named,) if isinstance(named, str) else named:
        if (weight := state.get(f"{name}.weight")) is not None:
            return len(weight)
    count = classifier_size(state)
    if count is None:
        raise FishnetError(f"{path} has no classifier; prediction needs the weights of a whole classification network")
    return count
