"""FishNet backbones for image-, region- and pixel-level prediction.

Importing this package registers the family with timm. Training, evaluation and prediction are imported when they are
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fishnet.models import create_model, list_models
from fishnet.version import __version__

if TYPE_CHECKING:
    from fishnet.commands.convert import convert
    from fishnet.commands.evaluate import evaluate
    from fishnet.commands.export import export
    from fishnet.commands.info import info
    from fishnet.commands.predict import predict
    from fishnet.commands.train import train
    from fishnet.loading import load
    from fishnet.models.checkpoints.weights import load_weights
    from fishnet.predictor import Predictor

_LAZY = {
    "convert": "fishnet.commands.convert",
    "evaluate": "fishnet.commands.evaluate",
    "export": "fishnet.commands.export",
    "info": "fishnet.commands.info",
    "load": "fishnet.loading",
    "predict": "fishnet.commands.predict",
    "train": "fishnet.commands.train",
    "load_weights": "fishnet.models.checkpoints.weights",
    "Predictor": "fishnet.predictor",
}

__all__ = [
    "Predictor", "__version__", "convert", "create_model", "evaluate", "export", "info", "list_models", "load",
    "load_weights", "predict", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a part of the library when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fishnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
