"""Prediction with an exported network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

from PIL import Image

from .engine import open_engine, read_description
from .errors import RunnerError
from .head import Json, Thresholds
from .images import opened_rgb, read_rgb
from .prepare import Size


class Model:
    """An exported network.

    Examples:
        >>> model = Model("exported")  # doctest: +SKIP
        >>> model("cat.jpg")["predictions"][0]  # doctest: +SKIP
        {'label': 'siamese', 'index': 2, 'score': 0.97}

    Args:
        folder: Folder that `fishnet export` wrote.
        allow_fallback: Compute in fp32 if this machine does not support the precision of the export.
        thresholds: Thresholds instead of those in export.json.

    Raises:
        RunnerError: The folder is incomplete, damaged or of another model, something is missing to run it, or a
            threshold is unknown or out of range.
    """

    def __init__(
        self, folder: str | Path, allow_fallback: bool = False, thresholds: Mapping[str, float | None] | None = None
    ) -> None:
        folder = Path(folder)
        self.description: Json = read_description(folder)
        self.engine = open_engine(folder, allow_fallback)
        values = dict(cast(Mapping[str, float], self.description.get("thresholds") or {}))
        values |= {name: value for name, value in (thresholds or {}).items() if value is not None}
        known = [field.name for field in fields(Thresholds)]
        if unknown := [name for name in values if name not in known]:
            raise RunnerError(f"unknown threshold {unknown[0]!r}; thresholds are {', '.join(known)}")
        self.thresholds = Thresholds(**values)  # type: ignore[arg-type]

    def __call__(self, image: str | Path | bytes | Image.Image) -> Json:
        """Predict on an image.

        Args:
            image: Path or content of an image file, or an image of Pillow; neither resized nor normalized.

        Returns:
            `predictions`, as in results.json of `fishnet predict`: label, index and score of classes, with the box,
            mask or keypoints of objects, or with the share of the pixels. A network that classifies pixels adds
            `label_map`, class indices (H, W). A network with several heads returns the predictions of each under image,
            region and pixel.

        Raises:
            RunnerError: The image cannot be used.
        """
        shown = read_rgb(image) if isinstance(image, str | Path | bytes) else opened_rgb(image)
        pixels = self.engine.preparation(shown)
        answers = self.engine.run([pixels])
        seen: Size = (pixels.shape[0], pixels.shape[1])
        size: Size = (shown.height, shown.width)
        found = {
            name: self.engine.heads[name].entry(own[0], seen, size, self.thresholds) for name, own in answers.items()
        }
        if len(found) == 1:
            return next(iter(found.values()))
        maps = {name: value for own in found.values() for name, value in own.items() if name != "predictions"}
        return {**{name: own["predictions"] for name, own in found.items()}, **maps}
