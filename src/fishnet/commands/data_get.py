"""`fishnet data get`: download public data sets."""

from __future__ import annotations

from pathlib import Path

from fishnet.commands.hints import suggest
from fishnet.errors import UsageError, did_you_mean

SETS = ("oxford-pets",)


def data_get(name: str, directory: str | Path, mirror: str | None = None) -> None:
    """Download a data set. `oxford-pets` has 7,349 photos of 37 breeds (811 MB), annotated for every task.

    Repeat the command to continue an interrupted download. Every archive is verified by its published checksum.

    Args:
        name: Data set: oxford-pets.
        directory: Folder for the data set in its original layout.
        mirror: URL of a folder with the archives under their original names, instead of the official server.

    Raises:
        UsageError: Unknown data set.
        FishnetError: The archives cannot be downloaded or unpacked.
    """
    if name not in SETS:
        raise UsageError(f"unknown data set {name!r}.{did_you_mean(name, SETS)} Known are: {', '.join(SETS)}")
    from fishnet.data.oxford_pets import fetch_pets

    print(fetch_pets(Path(directory), mirror=mirror))
    suggest("data", "convert", "oxford-pets", directory, f"{str(directory).rstrip('/')}_multitask")
