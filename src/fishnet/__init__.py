"""FishNet backbones for image-, region- and pixel-level prediction.

Importing this package registers the family with timm. Training, evaluation and prediction are imported when they are
first used; the command line also imports PyTorch only then.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from fishnet.version import __version__

if TYPE_CHECKING:
    from fishnet.commands.convert import convert
    from fishnet.commands.evaluate import evaluate
    from fishnet.commands.export import export
    from fishnet.commands.info import info
    from fishnet.commands.predict import predict
    from fishnet.commands.train import train
    from fishnet.loading import load
    from fishnet.models import create_model, list_models
    from fishnet.models.checkpoints.weights import load_weights
    from fishnet.predictor import Predictor

_LAZY = {
    "convert": "fishnet.commands.convert",
    "create_model": "fishnet.models",
    "evaluate": "fishnet.commands.evaluate",
    "export": "fishnet.commands.export",
    "info": "fishnet.commands.info",
    "list_models": "fishnet.models",
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


def _is_command() -> bool:
    """Return whether the `fishnet` command, or `python -m fishnet`, imports the package."""
    words = sys.orig_argv
    as_module = sys.argv[:1] == ["-m"] and words[words.index("-m") + 1 :][:1] == [__name__] if "-m" in words else False
    return as_module or PurePath(*sys.argv[:1]).stem == __name__


if not _is_command():
    importlib.import_module("fishnet.models")  # registers the family


def __getattr__(name: str) -> Any:
    """Import a part of the library when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fishnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
