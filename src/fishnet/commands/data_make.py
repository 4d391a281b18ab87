"""`fishnet data make`: generate synthetic data sets."""

from __future__ import annotations

from pathlib import Path

from fishnet.commands.hints import suggest
from fishnet.errors import UsageError, did_you_mean

SETS = ("scenes",)


def data_make(
    name: str, directory: str | Path, train: int = 2000, val: int = 400, size: int = 128, seed: int = 0
) -> None:
    """Generate a data set. `scenes` has handwritten digits on photographs, annotated for every task.

    Args:
        name: Data set: scenes.
        directory: Folder to write; must be empty, not exist, or contain the same data set, which is replaced.
        train: Number of training images.
        val: Number of validation images.
        size: Height and width of the images in pixels.
        seed: Seed of the data set.

    Raises:
        UsageError: Unknown data set, a folder with other files, too small a number, or scikit-learn is not installed.
    """
    if name not in SETS:
        raise UsageError(f"unknown data set {name!r}.{did_you_mean(name, SETS)} Known are: {', '.join(SETS)}")
    from fishnet.data.scenes import write_scenes

    print(write_scenes(Path(directory), train, val, size, seed).describe())
    suggest("train", "multitask", "--data", directory, "--out", f"runs/{Path(directory).resolve().name}")
