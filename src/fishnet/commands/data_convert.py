"""`fishnet data convert`: detection data between the layouts of COCO, Pascal VOC and YOLO."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fishnet.data.convert import ConversionReport, convert_boxes


def data_convert(
    source: str, dest: str, to: Literal["coco", "voc", "yolo"] = "coco", copy: bool = False
) -> ConversionReport:
    """Write the boxes and images of a data set in another layout; which one SOURCE has is found out.

    Args:
        source: Folder of the data set: COCO, Pascal VOC or YOLO.
        dest: Folder to make.
        to: Layout to write.
        copy: Copy images instead of linking them.
    """
    report = convert_boxes(Path(source), Path(dest), to, copy)
    print(report.describe())
    return report
