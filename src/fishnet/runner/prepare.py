"""Preprocessing of images: resize, crop, normalize, batch.

Evaluation, prediction, calibration and exported networks all use this implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""Height and width in pixels."""
UNLIMITED = 1 << 30
"""Value of `longest` that means no limit."""
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preparation:
    """Preprocessing of a network's inputs."""

    kind: str
    """square: the shorter side is resized to size / crop_pct pixels, then the center is cropped; fit: the shorter side
    is resized to `size` pixels, the longer one to at most `longest`."""
    size: int
    """Side of the square, or length of the shorter side, in pixels."""
    mean: tuple[float, ...]
    """Channel means, for images in 0..1."""
    std: tuple[float, ...]
    """Channel standard deviations, for images in 0..1."""
    crop_pct: float = 1.0
    """Fraction of the resized image that the crop of `square` keeps."""
    interpolation: str = "bilinear"
    """Interpolation of `square`: nearest, bilinear or bicubic. `fit` is bilinear."""
    longest: int = UNLIMITED
    """Maximum of the longer side of `fit` in pixels."""
    multiple: int = 1
    """Height and width of a batch are multiples of this number of pixels; images are padded with zeros."""

    def __post_init__(self) -> None:
        if self.kind not in ("square", "fit"):
            raise ValueError(f"unknown preprocessing {self.kind!r}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of an RGB image in the size of the network, uint8 (H, W, 3)."""
        if self.kind == "square":
            return square(image, self.size, self.crop_pct, self.interpolation)
        pixels = np.asarray(image)
        return resized(pixels, fitted((image.height, image.width), self.size, self.longest))

    def batch(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, Size, list[Size]]:
        """Return the normalized batch (N, 3, H, W), its height and width, and those of its images.

        Args:
            images: Images uint8 (h, w, 3), in the upper left corners of their parts of the batch.
        """
        sizes: list[Size] = [(image.shape[0], image.shape[1]) for image in images]
        height, width = padded(sizes, self.multiple)
        found = np.zeros((len(images), 3, height, width), np.float32)
        for place, image in zip(found, images, strict=True):
            place[:, : image.shape[0], : image.shape[1]] = normalized(image, self.mean, self.std)
        return found, (height, width), sizes

    def groups(self, images: Sequence[np.ndarray]) -> list[list[int]]:
        """Return the indices of the images that may share a batch: those of one padded size."""
        found: dict[Size, list[int]] = {}
        for place, image in enumerate(images):
            found.setdefault(padded([(image.shape[0], image.shape[1])], self.multiple), []).append(place)
        return list(found.values())


def padded(sizes: Sequence[Size], multiple: int) -> Size:
    """Return the smallest height and width, multiples of a number of pixels, that all sizes fit into."""
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    return height, width


def normalized(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return (pixels / 255 - mean) / std as float32 (3, H, W), from uint8 (H, W, 3), or from floats in 0..1."""
    values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    if pixels.dtype == np.uint8:
        values /= np.float32(255)
    values -= np.array(mean, np.float32)[:, None, None]
    values /= np.array(std, np.float32)[:, None, None]
    return values


def square(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> np.ndarray:
    """Return the center of a resized RGB image, uint8 (size, size, 3); see `Preparation`.

    An image that already has the right size is not resampled.
    """
    # the small constant corrects quotients that are rounded to just below an integer
    short = math.floor(size / crop_pct + 1e-6)
    width, height = image.size
    if min(width, height) != short:
        longer = int(short * max(width, height) / min(width, height))
        width, height = (short, longer) if width <= height else (longer, short)
        image = image.resize((width, height), _FILTERS[interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def fitted(size: Size, short: int, longest: int) -> Size:
    """Return the size whose shorter side is `short` pixels and whose longer side is at most `longest`, at least 1."""
    factor = min(short / min(size), longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Return pixels uint8 (H, W, 3) in another height and width: bilinear with antialiasing, as Pillow does it."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), _FILTERS["bilinear"]))
