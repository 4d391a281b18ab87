"""`fishnet data get`: download public data sets."""

from __future__ import annotations

from pathlib import Path

from fishnet.commands.hints import suggest
from fishnet.errors import UsageError, did_you_mean

SETS = ("oxford-pets",)


def data_get(name: str, directory: str, mirror: str | None = None) -> None:
    """Download a data set; `oxford-pets` are 7,349 photos of 37 breeds (811 MB), for every task.

    An interrupted download is continued by the same command. Every archive is compared with its published checksum.

    Args:
        name: Data set: oxford-pets.
        directory: Folder for the data set in its original layout.
        mirror: Address of a folder with the archives under their original names, instead of the official server.

    Raises:
        UsageError: Unknown data set.
        FishnetError: The archives cannot be downloaded or unpacked.
    """
    if name not in SETS:
        raise UsageError(f"unknown data set {name!r}.{did_you_mean(name, SETS)} Known are: {', '.join(SETS)}")
    from fishnet.data.oxford_pets import fetch_pets

    print(fetch_pets(Path(directory), mirror=mirror))
    suggest("data", "convert", "oxford-pets", directory, f"{directory.rstrip('/')}_multitask")
