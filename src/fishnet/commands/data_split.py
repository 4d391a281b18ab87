"""`fishnet data split`: a stratified val split where there is none."""

from __future__ import annotations

from pathlib import Path

from fishnet.data.classification.split import SplitReport, split_classification
from fishnet.data.detection.split import CocoSplitReport, split_coco
from fishnet.errors import UsageError


def data_split(
    directory: str, val: float = 0.2, seed: int = 0, copy: bool = False
) -> SplitReport | CocoSplitReport:  # fmt: skip
    """Make a stratified val split of DIR/train/<class>/, of a COCO file, or train and val of DIR/<class>/.

    It is safe to interrupt and rerun. Of a COCO folder only the annotation file is divided; images stay where they are.

    Args:
        directory: Folder of the data set.
        val: Share of each class that goes to val; at least one image, where a class has two different ones.
        seed: Seed of the choice.
        copy: Copy the files of DIR/<class>/ instead of moving them.
    """
    root = Path(directory)
    report: SplitReport | CocoSplitReport
    if any((root / "annotations").glob("instances_*.json")):
        if copy:
            raise UsageError("--copy is for DIR/<class>/; of a COCO folder no image is moved")
        report = split_coco(root, val=val, seed=seed)
    else:
        report = split_classification(root, val=val, seed=seed, copy=copy)
    print(report.describe())
    return report
