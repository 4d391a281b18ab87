"""FishNet models in plain PyTorch; importing this package registers them with timm."""

from __future__ import annotations

from fishnet.models.config import VARIANTS, FishConfig, FishConfigError
from fishnet.models.create import create_model, list_models
from fishnet.models.fishnet import FishNet

__all__ = ["VARIANTS", "FishConfig", "FishConfigError", "FishNet", "create_model", "list_models"]
