"""`fishnet data convert`: detection data between the layouts of COCO, Pascal VOC and YOLO."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fishnet.commands.hints import suggest
from fishnet.data.detection.convert import ConversionReport, FolderNames, convert_boxes


def data_convert(
    source: str,
    dest: str,
    to: Literal["coco", "voc", "yolo"] = "coco",
    copy: bool = False,
    val: float | None = None,
    seed: int = 0,
    images: str | None = None,
    annotations: str | None = None,
) -> ConversionReport:
    """Write the boxes and images of a data set in another layout; which one SOURCE has is found out.

    Args:
        source: Folder of the data set: COCO, Pascal VOC or YOLO.
        dest: Folder to make.
        to: Layout to write.
        copy: Copy images instead of linking them.
        val: Share of the images that becomes val, with about that share of every class; for a source of one split.
        seed: Seed of the choice of val.
        images: Folder of the images in SOURCE, where it is not JPEGImages (VOC) or images (YOLO).
        annotations: Folder of the .xml or .txt files in SOURCE, where it is not Annotations (VOC) or labels (YOLO).
    """
    names = FolderNames(images, annotations)
    report = convert_boxes(Path(source), Path(dest), to, copy, val, seed, names)
    print(report.describe())
    if to == "coco":
        suggest("data", "check", "detection", dest)
    return report
