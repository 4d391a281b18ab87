"""Export of networks that classify pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fishnet.deploy.difference import Difference
from fishnet.deploy.heads.registry import HeadExport, register_export
from fishnet.files import Json
from fishnet.models.heads.pixel import PixelHead
from fishnet.models.heads.types import Raw, Size


class PixelExport(HeadExport[PixelHead, Tensor]):
    """Logits of the pixels, which the graph resizes to the size of the images."""

    def spec(self, head: PixelHead, classes: list[str]) -> Json:
        """Return the entry of export.json."""
        return {"type": "pixel", "classes": classes}

    def outputs(self, head: PixelHead, raw: Raw, size: Size) -> Raw:
        """Return the logits at the size of the images."""
        return {"logits": F.interpolate(raw["logits"], size, mode="bilinear", align_corners=False)}

    def compare(self, found: Difference, wanted: Tensor, got: Tensor, spec: Json, precision: str) -> None:
        """Compare the classes of the pixels."""
        found.pixels = min(found.pixels, float((wanted.argmax(0) == got.argmax(0)).float().mean()))


register_export(PixelHead, PixelExport())
