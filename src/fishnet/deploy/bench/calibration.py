"""Calibration images for int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fishnet.data.folders import evenly_spaced, photo_files
from fishnet.data.images import read_image
from fishnet.errors import UsageError, counted

FEWEST, MOST = 10, 300


def find_photos(folder: Path) -> list[Path]:
    """Return up to 300 evenly spaced images of a folder and its sub-folders.

    Raises:
        UsageError: There is no such folder, or it has fewer than 10 images.
    """
    if not folder.is_dir():
        raise UsageError(f"--calibration {folder} is not a folder; give a folder of representative photos")
    found = photo_files(folder)
    if len(found) < FEWEST:
        raise UsageError(f"--calibration {folder} has {counted(len(found), 'image')}; int8 needs at least {FEWEST}")
    return evenly_spaced(found, MOST)


def batches(photos: list[Path], size: int) -> Iterator[Tensor]:
    """Yield batches of one image (1, 3, size, size), normalized with the statistics of ImageNet.

    Raises:
        BadImageError: An image cannot be read.
    """
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for photo in photos:
        pixels = F.pil_to_tensor(read_image(photo))
        pixels = F.center_crop(F.resize(pixels, [size], antialias=True), [size, size])
        yield ((pixels / 255 - mean) / std)[None]
