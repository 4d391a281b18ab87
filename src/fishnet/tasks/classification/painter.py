"""Contact sheets of a classifier's predictions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from fishnet.tasks.base import Answer, DrawnItem

if TYPE_CHECKING:  # drawing is imported only at the end of training
    from fishnet.drawing.sheets import Card

SHEET_IMAGES = 48
_SHEETS, _LINES, _SIDE, _FRAME_LINES = 20, 5, 320, 3


class Sheets:
    """Contact sheets, written page by page.

    Args:
        out: Folder to write contact_sheet*.jpg into.
        images: Number of images that will be added.
    """

    patterns: tuple[str, ...] = ("contact_sheet.jpg", "contact_sheet_[0-9][0-9].jpg")

    def __init__(self, out: Path, images: int) -> None:
        self.out, self.pages = out, min(_SHEETS, math.ceil(images / SHEET_IMAGES))
        self.cards: list[Card] = []
        self.written: list[Path] = []
        self.drawn = 0

    def wants(self, index: int) -> bool:
        """Whether the image with that index is drawn."""
        return index < _SHEETS * SHEET_IMAGES

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of a card."""
        return ImageOps.contain(image, (_SIDE, _SIDE)) if max(image.size) > _SIDE else image

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Add an image to the page; a full page is written."""
        if item["thumbnail"] is None:
            return
        self.drawn += 1
        lines = list(zip(answer["labels"], answer["scores"], strict=True))[:_LINES]
        self.cards.append({"image": item["thumbnail"], "title": Path(item["file"]).name, "lines": lines})
        if len(self.cards) == SHEET_IMAGES:
            self._write()

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image with the most probable classes in its upper left corner."""
        from fishnet.drawing.captions import Line, caption

        pairs = list(zip(answer["labels"], answer["scores"], strict=True))[:_FRAME_LINES]
        return caption(image, [Line(f"{label} {100 * score:.0f} %") for label, score in pairs])

    def finish(self) -> None:
        """Write the last, incomplete page, if any."""
        self._write()

    def _write(self) -> None:
        from fishnet.drawing.sheets import contact_sheet
        from fishnet.drawing.style import save_picture

        if not self.cards:
            return
        number = f"_{len(self.written) + 1:02d}" if self.pages > 1 else ""
        # JPEG: as PNG, photos would be several times larger and take longer to write than to predict on
        path = save_picture(contact_sheet(self.cards), self.out / f"contact_sheet{number}.jpg")
        self.written.append(path)
        self.cards = []
