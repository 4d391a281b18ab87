"""Pictures, label files and panoptic files of the predictions of a multitask network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fishnet.data.levels import LevelClasses
from fishnet.data.panoptic import Category, PanopticWriter
from fishnet.data.segmentation.coding import LabelCoding
from fishnet.runner.names import UniqueStems
from fishnet.tasks.base import Answer, DrawnItem
from fishnet.tasks.segmentation.painter import LabelMaps

_PICTURES, _DRAWN, _SIDE = "pictures", 500, 640
_PANOPTIC = "panoptic"


class LevelPictures:
    """A picture of all levels per image in OUT/pictures, label files in OUT/labels, and panoptic files of COCO.

    Args:
        out: Folder to write into.
        classes: Class names of each level.
        coding: How label files encode classes; None: there are no label maps.
        categories: Classes of panoptic maps; None: there are none.
    """

    def __init__(
        self, out: Path, classes: LevelClasses, coding: LabelCoding | None, categories: Sequence[Category] | None
    ) -> None:
        self.out, self.classes = out, classes
        self.written: list[Path] = []
        self.drawn = 0
        self._labels = None if coding is None else LabelMaps(out, classes.pixel, coding.palette, coding.encode)
        self._panoptic = None if categories is None else PanopticWriter(out / f"{_PANOPTIC}.json", categories)
        self.patterns: tuple[str, ...] = (f"{_PICTURES}/*.jpg",)
        self.patterns += () if coding is None else ("labels/*.png",)
        self.patterns += () if categories is None else (f"{_PANOPTIC}/*.png", f"{_PANOPTIC}.json")
        self._names = UniqueStems()
        self._count = 0

    def wants(self, index: int) -> bool:
        """Whether the image with that index is drawn; label and panoptic files are written for all images."""
        return index < _DRAWN

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image unchanged: boxes are in its pixels."""
        return image

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Write the files of one image, and draw it."""
        self._count += 1
        if self._labels is not None:
            before = len(self._labels.written)
            self._labels.add({"file": item["file"], "thumbnail": None}, answer["pixel"])
            self.written += self._labels.written[before:]
        if self._panoptic is not None:
            self.written.append(self._panoptic.add(self._count, Path(item["file"]).name, answer["panoptic"]))
        if item["thumbnail"] is None:
            return
        from fishnet.drawing.style import save_picture
        from fishnet.tasks.multitask.pictures import (
            LabeledImage,
            LevelColors,
            as_labels,
            draw_levels,
            with_level_legend,
        )

        path = self.out / _PICTURES / f"{self._names.of(item['file'])}.jpg"
        colors = LevelColors(self.classes, self._panoptic.categories if self._panoptic is not None else ())
        name = Path(item["file"]).name
        shown = LabeledImage(item["thumbnail"], as_labels(answer), name, answer.get("panoptic"))
        save_picture(with_level_legend(draw_levels(shown, colors, _SIDE), [shown], colors), path)
        self.written.append(path)
        self.drawn += 1

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image with its label map, its objects, and its class in the upper left corner."""
        from fishnet.drawing.captions import Line, caption
        from fishnet.drawing.label_maps import paint_label_map
        from fishnet.drawing.regions import draw_regions
        from fishnet.tasks.multitask.pictures import LevelColors

        colors = LevelColors(self.classes)
        if "pixel" in answer:
            image = paint_label_map(image, answer["pixel"]["label_map"], colors.pixel, clear=colors.clear)
        if "region" in answer:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            found = {**answer["region"], "labels": answer["region"]["indices"]}
            image = draw_regions(pixels, found, self.classes.region, None)
        best = answer["image"]["labels"][:1] if "image" in answer else []
        return caption(image, [Line(f"{name} {100 * answer['image']['scores'][0]:.0f} %") for name in best])

    def finish(self) -> None:
        """Write the list of panoptic maps."""
        if self._panoptic is not None and self._count:
            self.written.append(self._panoptic.finish())
