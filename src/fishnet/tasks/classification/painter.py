"""Contact sheets of a classifier's answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from fishnet.files import atomic_path
from fishnet.tasks.base import Answer, DrawnItem

if TYPE_CHECKING:  # training draws nothing until its end
    from fishnet.drawing.sheets import Card

SHEET_IMAGES = 48
_SHEETS, _LINES, _SIDE = 20, 5, 320


class Sheets:
    """Contact sheets, written page by page.

    Args:
        out: Folder to write contact_sheet*.png into.
        images: Number of images that will come.
    """

    patterns: tuple[str, ...] = ("contact_sheet.png", "contact_sheet_[0-9][0-9].png")

    def __init__(self, out: Path, images: int) -> None:
        self.out, self.pages = out, min(_SHEETS, math.ceil(images / SHEET_IMAGES))
        self.cards: list[Card] = []
        self.written: list[Path] = []
        self.drawn = 0

    def wants(self, index: int) -> bool:
        """Whether the image of that number is drawn."""
        return index < _SHEETS * SHEET_IMAGES

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of a card."""
        return ImageOps.contain(image, (_SIDE, _SIDE)) if max(image.size) > _SIDE else image

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Put an image on the page; a full page is written."""
        if item["thumbnail"] is None:
            return
        self.drawn += 1
        lines = list(zip(answer["labels"], answer["scores"], strict=True))[:_LINES]
        self.cards.append({"image": item["thumbnail"], "title": Path(item["file"]).name, "lines": lines})
        if len(self.cards) == SHEET_IMAGES:
            self._write()

    def finish(self) -> None:
        """Write the page that was begun, if any."""
        self._write()

    def _write(self) -> None:
        from fishnet.drawing.sheets import contact_sheet

        if not self.cards:
            return
        number = f"_{len(self.written) + 1:02d}" if self.pages > 1 else ""
        path = self.out / f"contact_sheet{number}.png"
        with atomic_path(path) as partial:
            contact_sheet(self.cards).save(partial)
        self.written.append(path)
        self.cards = []
