"""Pictures and label files of predicted label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fishnet.files import atomic_path
from fishnet.runner.names import UniqueStems
from fishnet.tasks.base import Answer, DrawnItem

ANSWER = "label_map"
"""Key of the label map (H, W) in a prediction."""
Encode = Callable[[np.ndarray], Image.Image]
"""Function that encodes a label map of class indices (H, W) as the image of a label file."""
_PICTURES, _LABELS, _DRAWN = "pictures", "labels", 500
_SIDE = 1600


def class_indices(label_map: np.ndarray) -> Image.Image:
    """Return a label map as a grayscale image of class indices, with 16 bits if 8 are not enough."""
    wide = label_map.size and int(label_map.max()) > np.iinfo(np.uint8).max
    return Image.fromarray(label_map.astype(np.uint16 if wide else np.uint8))


class LabelMaps:
    """An overlay with a legend per image in OUT/pictures, and a label file in OUT/labels, named after the image.

    Args:
        out: Folder to write pictures/ and labels/ into.
        classes: Class names.
        palette: Color of each class in overlays; None: distinct default colors.
        encode: Encoding of label files, such as that of the training data.
    """

    patterns: tuple[str, ...] = (f"{_PICTURES}/*.jpg", f"{_LABELS}/*.png")

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        encode: Encode = class_indices,
    ) -> None:
        self.out, self.classes, self.palette, self.encode = out, list(classes), palette, encode
        self.written: list[Path] = []
        self.drawn = 0
        self._names = UniqueStems()

    def wants(self, index: int) -> bool:
        """Whether the image with that index is drawn; label files are written for all images."""
        return index < _DRAWN

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of its overlay."""
        if max(image.size) <= _SIDE:
            return image
        small = image.copy()
        small.thumbnail((_SIDE, _SIDE))
        return small

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Write the label file of one image, and draw the overlay."""
        found = answer[ANSWER]
        label_map = found.cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
        name = self._names.of(item["file"])
        path = self.out / _LABELS / f"{name}.png"
        with atomic_path(path) as partial:
            self.encode(label_map).save(partial, "PNG")
        self.written.append(path)
        if item["thumbnail"] is not None:
            self._draw(item["thumbnail"], label_map, self.out / _PICTURES / f"{name}.jpg")

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image with its label map, and the names of the classes in it in the upper left corner."""
        from fishnet.drawing.captions import Line, caption
        from fishnet.drawing.label_maps import background_of, class_colors, paint_label_map

        colors, clear = class_colors(len(self.classes), self.palette), background_of(self.classes)
        picture = paint_label_map(image, answer[ANSWER], colors, clear=clear)
        swatches = {index: tuple(color) for index, color in enumerate(colors.tolist())}
        seen = [index for index in answer["indices"] if index not in clear]
        return caption(picture, [Line(self.classes[index], swatches[index]) for index in seen])

    def _draw(self, image: Image.Image, label_map: np.ndarray, path: Path) -> None:
        from fishnet.drawing.label_maps import background_of, class_colors, draw_label_map, with_legend
        from fishnet.drawing.style import save_picture

        colors, clear = class_colors(len(self.classes), self.palette), background_of(self.classes)
        picture = draw_label_map(image, label_map, colors, longest=_SIDE, clear=clear)
        save_picture(with_legend(picture, [label_map], self.classes, colors, clear), path)
        self.written.append(path)
        self.drawn += 1

    def finish(self) -> None:
        """Do nothing, since `add` has already written every file."""
