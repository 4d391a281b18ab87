"""`fishnet data split`: a stratified val split where there is none."""

from __future__ import annotations

from pathlib import Path

from fishnet.data.split import SplitReport, split_classification


def data_split(directory: str, val: float = 0.2, seed: int = 0, copy: bool = False) -> SplitReport:
    """Make a stratified val split of DIR/train/<class>/, or train and val of DIR/<class>/; safe to interrupt and rerun.

    Args:
        directory: Folder of the data set.
        val: Share of each class that goes to val; at least one image, where a class has two different ones.
        seed: Seed of the choice.
        copy: Copy the files of DIR/<class>/ instead of moving them.
    """
    report = split_classification(Path(directory), val=val, seed=seed, copy=copy)
    print(report.describe())
    return report
