"""Pictures of a detector's predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fishnet.files import atomic_path
from fishnet.runner.names import UniqueStems
from fishnet.tasks.base import Answer, DrawnItem

_FOLDER, _PICTURES = "pictures", 500
_SIDE = 1600


class Pictures:
    """A picture per image in OUT/pictures, named after the image.

    Args:
        out: Folder to write pictures/ into.
        classes: Class names.
    """

    patterns: tuple[str, ...] = (f"{_FOLDER}/*.jpg",)

    def __init__(self, out: Path, classes: list[str]) -> None:
        self.folder, self.classes = out / _FOLDER, classes
        self.written: list[Path] = []
        self.drawn = 0
        self._names = UniqueStems()

    def wants(self, index: int) -> bool:
        """Whether the image with that index is drawn."""
        return index < _PICTURES

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image unchanged: objects are drawn at its original size."""
        return image

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Draw the objects of one image."""
        if item["thumbnail"] is None:
            return
        path = self.folder / f"{self._names.of(item['file'])}.jpg"
        with atomic_path(path) as partial:
            self._draw(item["thumbnail"], answer, _SIDE).save(partial, quality=92)
        self.written.append(path)
        self.drawn += 1

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image with its objects."""
        return self._draw(image, answer, None)

    def _draw(self, image: Image.Image, answer: Answer, longest: int | None) -> Image.Image:
        from fishnet.drawing.regions import draw_regions

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return draw_regions(pixels, {**answer, "labels": answer["indices"]}, self.classes, longest)

    def finish(self) -> None:
        """Do nothing, since `add` has already written every picture."""
