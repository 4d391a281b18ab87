"""Export of classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from fishnet.deploy.difference import Difference, largest
from fishnet.deploy.heads.registry import HeadExport, register_export
from fishnet.files import Json
from fishnet.models.heads.image import ImageHead


class ImageExport(HeadExport[ImageHead, Tensor]):
    """Logits of an image."""

    def spec(self, head: ImageHead, classes: list[str]) -> Json:
        """Return the entry of export.json."""
        return {"type": "classifier", "classes": classes, "multi_label": head.plan.multi_label}

    def compare(self, found: Difference, wanted: Tensor, got: Tensor, spec: Json, precision: str) -> None:
        """Add the differences of the scores."""
        for score in (torch.softmax, lambda value, dim: value.sigmoid()):
            found.score = largest(found.score, float((score(wanted, 0) - score(got, 0)).abs().max()))


register_export(ImageHead, ImageExport())
