"""`fishnet data convert oxford-pets`: convert the Oxford-IIIT Pet data set for all tasks."""

from __future__ import annotations

from pathlib import Path

from fishnet.commands.hints import suggest
from fishnet.tasks.base import DataReport


def data_convert_pets(
    source: str | Path, dest: str | Path, val: float = 0.2, seed: int = 0, copy: bool = False
) -> DataReport:
    """Convert the Oxford-IIIT Pet data set to one with a class, box, mask and label map per image.

    The mask covers the whole pet; in the label map, the border of the trimap is ignored.

    Args:
        source: Folder in the original layout, as `fishnet data get oxford-pets` makes it.
        dest: Folder to write; must be empty or not exist.
        val: Fraction of the official trainval list that becomes val, stratified by breed; the official test list
            becomes test. With 0, trainval becomes train, and test becomes val.
        seed: Seed of the random choice of val.
        copy: Copy images instead of linking them.

    Raises:
        UsageError: The output folder is not empty, or `val` is not a fraction.
        FishnetError: The source is incomplete or damaged.
    """
    from fishnet.data.oxford_pets import convert_pets

    report = convert_pets(Path(source), Path(dest), val, seed, copy)
    print(report.describe())
    suggest("train", "multitask", "--data", dest, "--out", f"runs/{Path(dest).resolve().name}")
    return report
