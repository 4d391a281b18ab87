"""The built-in data set: digits on photographs, with labels of all three levels and without a download.

scikit-learn's 8x8 handwritten digits are pasted with random size, rotation, color and overlap on crops of its two
photographs. The class of an image is the digit with the largest visible area. Train and val share neither digit samples
nor regions of the photographs. Image i of a split is a function of (seed, split, i) and of the size.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import from_numpy
from tqdm import tqdm

from fishnet.data import run_lengths
from fishnet.data.levels import ImageLabels, LayoutWriter, LevelClasses, ObjectLabels, claim_folder
from fishnet.errors import UsageError

Split = Literal["train", "val"]
DIGITS = tuple(str(digit) for digit in range(10))
CLASSES = LevelClasses(list(DIGITS), list(DIGITS), ["background", *DIGITS])
DOMINANCE = 1.5
"""Least ratio between the visible areas of the image's class and of the next one."""
MARKER = "scenes.json"
SMALLEST = 32
_HELD_OUT = 5
"""Every fifth sample of a digit is in val."""
_BORDER = 0.7
"""Share of the width of the photographs that train takes, from the left."""
_VISIBLE = 0.6
"""Minimum visible fraction of each digit."""
_SHARP = 4
"""Factor by which digits are enlarged before they are turned."""
_INK = 0.55
"""Darkness from which on a pixel belongs to a digit."""


@dataclass
class Scene:
    """One image with its labels."""

    image: np.ndarray
    """uint8 (size, size, 3)."""
    label: int
    """Class with the largest visible area."""
    digits: np.ndarray
    """Class of each digit from back to front, int64 (N,)."""
    masks: np.ndarray
    """Visible part of each digit, bool (N, size, size)."""

    @property
    def label_map(self) -> np.ndarray:
        """Class index of each pixel, uint8 (size, size): 0 is background, 1 + d is digit d."""
        found = np.zeros(self.masks.shape[1:], np.uint8)
        for digit, mask in zip(self.digits, self.masks, strict=True):
            found[mask] = digit + 1
        return found


class _Material(NamedTuple):
    """What the scenes of a split are made of."""

    digits: list[list[Image.Image]]
    """Grayscale images by class, with margins."""
    photos: list[Image.Image]


@cache
def _material(split: Split) -> _Material:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError:
        raise UsageError("the scenes need scikit-learn: pip install 'fishnet-vision[demo]'") from None
    source = load_digits()
    found: list[list[Image.Image]] = []
    for digit in range(10):
        indices = np.flatnonzero(source.target == digit)
        held_out = np.arange(len(indices)) % _HELD_OUT == 0
        found.append([_enlarged(source.images[index]) for index in indices[held_out == (split == "val")]])
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    return _Material(found, [photo.crop(_region(photo, split)) for photo in photos])


def _region(photo: Image.Image, split: Split) -> tuple[int, int, int, int]:
    """Return the part of a photograph that a split takes: left, top, right, bottom."""
    border = round(_BORDER * photo.width)
    return (0, 0, border, photo.height) if split == "train" else (border, 0, photo.width, photo.height)


def _enlarged(pixels: np.ndarray) -> Image.Image:
    """Return a digit of values 0..16 with a margin of a pixel, enlarged."""
    padded = np.pad(pixels * (255 / 16), 1).astype(np.uint8)
    return Image.fromarray(padded).resize([side * _SHARP for side in padded.shape[::-1]], Image.Resampling.BICUBIC)


def make_scene(seed: int, split: Split, index: int, size: int = 128) -> Scene:
    """Return one scene.

    Args:
        seed: Seed of the data set.
        split: Split, which decides on digit samples and regions of the photographs.
        index: Index of the image in its split.
        size: Side of the image in pixels.

    Raises:
        UsageError: scikit-learn is not installed, or the size is below 32.
    """
    if size < SMALLEST:
        raise UsageError(f"--size must be at least {SMALLEST} pixels, not {size}")
    generator = np.random.default_rng((seed, ("train", "val").index(split), index))
    material = _material(split)
    background = _background(generator, material.photos, size)
    while True:
        digits = generator.integers(0, 10, generator.integers(1, 5))
        shades = np.stack([_turned(generator, material.digits[digit], size) for digit in digits])
        covered = shades > _INK
        masks = covered & ~_above(covered)
        label = dominant(digits, masks.sum((1, 2)))
        if label is not None and (masks.sum((1, 2)) >= _VISIBLE * covered.sum((1, 2))).all():
            return Scene(_painted(generator, background, shades, masks), label, digits, masks)


def dominant(digits: np.ndarray, areas: np.ndarray) -> int | None:
    """Return the class with the largest visible area, or None if it is not clearly the largest.

    It must have 1.5 times the area of the next class, both by the largest digit of each and by all of them together.

    Args:
        digits: Class of each digit.
        areas: Visible pixels of each digit.
    """
    largest, total = np.zeros(10), np.zeros(10)
    np.maximum.at(largest, digits, areas)
    np.add.at(total, digits, areas)
    best = int(largest.argmax())
    others = np.arange(10) != best
    stands_out = largest[best] >= DOMINANCE * largest[others].max() and total[best] >= DOMINANCE * total[others].max()
    return best if stands_out else None


def _background(generator: np.random.Generator, photos: list[Image.Image], size: int) -> np.ndarray:
    """Return a square crop of a photograph, mirrored half of the time, float32 (size, size, 3) in 0..255."""
    photo = photos[generator.integers(len(photos))]
    most = min(photo.size)
    side = int(generator.integers(min(96, most), min(192, most) + 1))
    left = int(generator.integers(photo.width - side + 1))
    top = int(generator.integers(photo.height - side + 1))
    crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32)
    return pixels[:, ::-1] if generator.random() < 0.5 else pixels


def _turned(generator: np.random.Generator, samples: list[Image.Image], size: int) -> np.ndarray:
    """Return a digit at a random position, of random size and rotation, float32 (size, size) in 0..1."""
    source = samples[generator.integers(len(samples))]
    height = size * math.exp(generator.uniform(math.log(0.38), math.log(0.72)))
    width = height * generator.uniform(0.8, 1.2)
    angle = math.radians(generator.uniform(-15, 15))
    x, y = (side / 2 + generator.random() * (size - side) for side in (width, height))
    # from pixels of the scene to pixels of the digit, both turned around their centers
    across, down = source.width / width, source.height / height
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = (
        cos * across, sin * across, source.width / 2 - across * (cos * x + sin * y),
        -sin * down, cos * down, source.height / 2 - down * (-sin * x + cos * y),
    )  # fmt: skip
    found = source.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(found, np.float32) / 255


def _above(covered: np.ndarray) -> np.ndarray:
    """Return for each digit the pixels that digits in front of it cover, bool (N, size, size)."""
    front = np.zeros_like(covered)
    front[:-1] = np.logical_or.accumulate(covered[:0:-1])[::-1]
    return front


def _painted(
    generator: np.random.Generator, background: np.ndarray, shades: np.ndarray, masks: np.ndarray
) -> np.ndarray:
    """Return the image: digits from back to front, each in a color that differs from its background."""
    image = background.copy()
    for shade, mask in zip(shades, masks, strict=True):
        behind = image[mask].mean(0)
        colors = np.array([_color(generator) for _ in range(8)], np.float32)
        color = colors[np.abs(colors - behind).sum(1).argmax()]
        # the edge fades within about a pixel around the border of the mask
        cover = np.clip((shade - _INK) * 5 + 0.5, 0, 1)[..., None]
        image += cover * (color - image)
    noise = generator.normal(0, 4, image.shape[:2])[..., None]
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def _color(generator: np.random.Generator) -> tuple[float, float, float]:
    hue, saturation, value = generator.uniform((0, 0.3, 0.15), (1, 1, 1))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def scene_labels(scene: Scene) -> ImageLabels:
    """Return the labels of a scene on all levels."""
    runs = run_lengths.encode(from_numpy(scene.masks))
    boxes = run_lengths.bounding_boxes(runs)
    objects = ObjectLabels(scene.digits.astype(np.int64), boxes, np.zeros(len(boxes), bool), runs)
    return ImageLabels(scene.label, objects, scene.label_map)


@dataclass
class ScenesReport:
    """Result of `write_scenes`."""

    out: Path
    images: dict[str, int]

    def describe(self) -> str:
        """Describe the result as text."""
        counts = ", ".join(f"{split} {count}" for split, count in self.images.items())
        return f"{self.out}: {counts} images with classes, boxes, outlines and label maps"


def write_scenes(
    out: Path, train: int = 2000, val: int = 400, size: int = 128, seed: int = 0, progress: bool = True
) -> ScenesReport:
    """Write a data set of scenes in the multitask layout; earlier scenes in the folder are replaced.

    Args:
        out: Output folder.
        train: Number of training images.
        val: Number of validation images.
        size: Side of the images in pixels.
        seed: Seed of the data set.
        progress: Show a progress bar on a terminal.

    Raises:
        UsageError: The folder contains something else, a number is too small, or scikit-learn is not installed.
    """
    counts: dict[Split, int] = {"train": train, "val": val}
    for split, count in counts.items():
        if count < 1:
            raise UsageError(f"--{split} must be at least 1 image, not {count}")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, but is {seed}")
    make_scene(
        seed, "train", 0, size
    )  # fails before anything is written if the size is too small or scikit-learn is missing
    settings = {"scenes": {"train": train, "val": val, "size": size, "seed": seed}}
    claim_folder(out, MARKER, settings, ("train", "val", "annotations", "classes.json"))
    writer = LayoutWriter(out, CLASSES, "fishnet scenes: digits and photographs of scikit-learn")
    with tqdm(total=train + val, desc="scenes", unit="image", disable=None if progress else True, leave=False) as bar:
        for split, name, scene in _all_scenes(seed, counts, size):
            writer.add(split, name, Image.fromarray(scene.image), (size, size), scene_labels(scene))
            bar.update()
    writer.finish()
    return ScenesReport(out, writer.counts())


def _all_scenes(seed: int, counts: dict[Split, int], size: int) -> Iterator[tuple[Split, str, Scene]]:
    for split, count in counts.items():
        for index in range(count):
            yield split, f"{index:05d}.jpg", make_scene(seed, split, index, size)
