"""Entry points for torch.hub: `torch.hub.load("OWNER/fishnet", "fishnet150", num_classes=10)`."""

import sys
from functools import partial
from pathlib import Path

dependencies = ["torch", "torchvision", "timm", "safetensors", "numpy", "PIL", "yaml"]

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from fishnet.models import create_model, list_models  # noqa: E402  # the line above makes the package importable

for _name in list_models():
    globals()[_name] = partial(create_model, _name)
    globals()[_name].__doc__ = f"Return {_name}; keywords as for fishnet.create_model (weights, num_classes, ...)."
