"""Text of `fishnet info decoders`: the decoders of the pixel head and when to use which."""

from __future__ import annotations

import textwrap

from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.pixel import PixelPlan, pixel_decoders
from fishnet.models.heads.pixel_decoders import DECODERS

_MODEL = "fishnet_tiny"
_CLASSES = 21
_WHEN = {
    "fish": "Levels projected, summed and refined at stride 4. The default: a FishNet's finest map is already deep.",
    "hypercolumn": "All levels at every pixel, without spatial context: to probe the features of a backbone.",
    "fpn": "Semantic FPN, with its own top-down path: for backbones whose finest map is shallow.",
    "upernet": "Pyramid pooling and a feature pyramid: the most accurate on large images, and the slowest.",
}


def describe_decoders() -> str:
    """Return a table of the decoders: parameters of the head on a small trunk, and when to use which."""
    lines = [f"{'decoder':<19}parameters of the head ({_MODEL}, {_CLASSES} classes)"]
    for name in DECODERS:
        network = build_network(Architecture(_MODEL, {"pixel": PixelPlan(num_classes=_CLASSES, decoder=name)}))
        count = sum(p.numel() for p in network.heads.parameters())
        lines += [f"{name:<19}{count:>10,}"]
        lines += textwrap.wrap(_WHEN[name], 100, initial_indent="  ", subsequent_indent="  ")
    others = [name for name in pixel_decoders() if name not in DECODERS]
    known = ", ".join(others) or "install segmentation-models-pytorch to use them"
    lines += textwrap.wrap(f"of segmentation_models_pytorch: {known}", 100, subsequent_indent="  ")
    return "\n".join([*lines, "", "fishnet train segmentation --pixel.decoder NAME"])
