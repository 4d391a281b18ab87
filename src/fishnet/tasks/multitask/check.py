"""`fishnet data check multitask`: findings, and optionally a picture of images with their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fishnet.data.checks import CheckReport
from fishnet.data.images import BadImageError
from fishnet.data.levels import LEVELS, LevelClasses
from fishnet.data.multitask.checks import check_multitask
from fishnet.data.multitask.layout import open_multitask
from fishnet.files import check_picture_name

_ON_SHEET = 12


def check_data(root: Path | str, workers: int = 2, picture: str | Path | None = None) -> CheckReport:
    """Count and check the labels of each level, and decode every image of a multitask folder, or of several folders
    that are used together.

    Args:
        root: Folder of the data set, or folders by level, such as `image=DIR1,region=DIR2`.
        workers: Threads that decode images.
        picture: PNG or JPEG file to write: some images with their classes, boxes, outlines and label maps.
    """
    if picture is not None:
        check_picture_name(Path(picture))
    report = check_multitask(root, workers)
    if picture is not None:
        print(_draw(root, list(report.summary["splits"]), Path(picture)))
    return report


def _draw(root: Path | str, splits: list[str], path: Path) -> str:
    """Write a contact sheet of images from all splits, evenly spaced in their lists; return what was written."""
    from fishnet.drawing.style import save_picture
    from fishnet.tasks.multitask.pictures import LabeledImage, LevelColors, level_sheet

    items: list[LabeledImage] = []
    opened = [open_multitask(root, name, bad_images="skip") for name in splits]
    for number, (name, split) in enumerate(zip(splits, opened, strict=True)):
        wanted = _ON_SHEET // len(splits) + (number < _ON_SHEET % len(splits))
        for index in np.linspace(0, len(split) - 1, min(wanted, len(split))).round().astype(int).tolist():
            try:
                image, labels = split.load(index)
            except BadImageError:  # already in the report
                continue
            items.append(LabeledImage(image, labels, f"{name}: {split.paths[index].name}"))
    if not items:
        return f"no image can be drawn, so {path} is not written"
    # a split may lack the labels of a level, and with them its classes
    names = {level: max((split.classes.of(level) for split in opened), key=len) for level in LEVELS}
    colors = LevelColors(LevelClasses(names["image"], names["region"], names["pixel"]))
    save_picture(level_sheet(items, colors), path)
    return f"written: {path}"
