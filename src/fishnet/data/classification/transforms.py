"""From a PIL image to a normalised tensor: augmentation for training, a fixed resize and crop for everything else.

Geometry and colour operations work on 8-bit PIL images; lighting works on a tensor of values in 0..1; then comes the
normalisation; random erasing fills its rectangle with normalised noise last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import posterize as _timm_posterize
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from fishnet.config import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, PROBABILITY, PreprocessConfig, Rules
from fishnet.errors import UsageError

Transform = Callable[[Image.Image], Tensor]

_NUMBER = r"\d+(\.\d+)?"
_POLICY = re.compile(rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|tweights|t3aw|t3a))*")

# Principal components of the colours of ImageNet's pixels in 0..1 (Krizhevsky et al., 2012): one eigenvector per
# column, one row per channel (R, G, B).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass
class AugmentConfig:
    """Augmentation of training images."""

    crop: Literal["random_resized", "pad", "resize"] = "random_resized"
    """random_resized: a random part, resized; pad: reflection padding by augment.pad, then a random crop; resize: the
    whole image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area that random_resized crops, as fractions of the image."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the aspect ratio that random_resized crops."""
    pad: int = 4
    """Pixels added on each side for crop = pad, at the training size."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter; 0 disables it."""
    lighting: float = 0.0
    """Standard deviation of PCA lighting noise; 0 disables it."""
    lighting_released: bool = False
    """Reproduce the released recipe, which multiplies the eigenvectors of the lighting noise along the wrong axis."""
    rand_augment: str | None = None
    """RandAugment policy of timm, such as rand-m9-mstd0.5-inc1; None disables it."""
    random_erasing: float = 0.0
    """Probability of random erasing."""
    grow_from: int | None = None
    """Image size of the first epochs, which then grows to --size; None trains all epochs at --size."""
    grow_share: float = 0.9
    """Fraction of the epochs after which the images have reached --size."""
    mixup: float = 0.0
    """Alpha of mixup; 0 disables it."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 disables it."""
    mix_probability: float = 1.0
    """Probability that a batch is mixed."""
    mix_off_epochs: int = 0
    """Last epochs without mixup and CutMix."""

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "grow_from",
        NOT_NEGATIVE: "pad mixup cutmix mix_off_epochs",
        POSITIVE: "grow_share",
        PROBABILITY: "mix_probability",
    }


def train_transform(augment: AugmentConfig, preprocess: PreprocessConfig, size: int) -> Transform:
    """Return the picklable transform of training images: PIL RGB -> float tensor (3, size, size), normalised.

    It draws from the global generators of `random`, NumPy and torch; the data set seeds them for every sample.

    Raises:
        UsageError: A setting is out of range, or the RandAugment policy is unknown.
    """
    _check_augment(augment, size)
    _check_preprocess(preprocess, size)
    steps: list[Callable] = _crop(augment, preprocess, size)
    if augment.flip:
        steps.append(Flip(augment.flip))
    if augment.rand_augment:
        steps.append(RandAugment(augment.rand_augment, preprocess, size))
    if augment.color_jitter:
        strength = augment.color_jitter
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    steps.append(ToTensor())
    if augment.lighting:
        steps.append(Lighting(augment.lighting, augment.lighting_released))
    steps.append(Normalize(preprocess))
    if augment.random_erasing:
        steps.append(Erasing(augment.random_erasing))
    return Pipeline(steps)


def eval_transform(preprocess: PreprocessConfig, size: int) -> Transform:
    """Return the picklable transform for judging and using a model: PIL RGB -> float tensor (3, size, size).

    The shorter side is resized to floor(size / crop_pct), the centre is cropped, the values are normalised. An image
    that has the right size already is not resampled.

    Raises:
        UsageError: A setting is out of range.
    """
    _check_preprocess(preprocess, size)
    # the small number keeps 1 / 0.1 and the like from landing just below a whole number
    resized = math.floor(size / preprocess.crop_pct + 1e-6)
    return Pipeline([Resize(resized, preprocess), v2.CenterCrop(size), ToTensor(), Normalize(preprocess)])


def denormalise(images: Tensor, preprocess: PreprocessConfig) -> Tensor:
    """Return normalised images (..., 3, H, W) as uint8 of the same shape, for pictures; values are rounded."""
    shape = (3, 1, 1)
    mean = torch.tensor(preprocess.mean, device=images.device).view(shape)
    std = torch.tensor(preprocess.std, device=images.device).view(shape)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Pipeline:
    """Steps applied one after the other; its repr lists them."""

    def __init__(self, steps: list[Callable]) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> Tensor:
        """Return what the last step makes of the image."""
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value

    def __repr__(self) -> str:
        return "\n".join(["Pipeline:", *(f"  {step!r}" for step in self.steps)])


class RandAugment:
    """timm's RandAugment on PIL images; what rotation and shear uncover is filled with the mean colour."""

    def __init__(self, policy: str, preprocess: PreprocessConfig, size: int) -> None:
        self.policy = policy
        # as timm's own training does: translations up to 45 % of the side
        options = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * m) for m in preprocess.mean)}
        # timm itself overlooks a part that it does not know
        if not _POLICY.fullmatch(policy):
            raise UsageError(
                f"augment.rand_augment: {policy!r} is no RandAugment policy of timm, such as rand-m9-mstd0.5-inc1 "
                "(parts: m, n, p, mstd, mmax, inc, t)"
            )
        self.augment = rand_augment_transform(policy, options)
        for operation in self.augment.ops:
            if operation.aug_fn is _timm_posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image after the policy's random operations."""
        return self.augment(image)

    def __repr__(self) -> str:
        return f"RandAugment({self.policy})"


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep at least one bit: timm's strongest level keeps none, a black image, which newer Pillow refuses."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


class Flip:
    """Mirror left and right with a probability; torchvision's takes several times as long for a small image."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image, mirrored or not."""
        mirrored = float(torch.rand(())) < self.probability
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    def __repr__(self) -> str:
        return f"Flip(p={self.probability})"


class Resize:
    """torchvision's Resize, which an image of the right size never enters: the call alone takes 0.04 ms."""

    def __init__(self, size: int | tuple[int, int], preprocess: PreprocessConfig) -> None:
        self.size = size
        self.resize = v2.Resize(size, InterpolationMode(preprocess.interpolation), antialias=True)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image with its shorter side of `size`, or with both sides of it."""
        fits = image.size == self.size[::-1] if isinstance(self.size, tuple) else min(image.size) == self.size
        return image if fits else self.resize(image)

    def __repr__(self) -> str:
        return repr(self.resize)


class PadCrop:
    """Random crop of side `size` from an image reflected by `pad` pixels beyond each edge (the edge not repeated).

    The same as torchvision's RandomCrop(padding_mode="reflect"), of which the reflection takes most of the time of
    loading a 32-pixel image; here the pixels of the crop are gathered directly.
    """

    def __init__(self, size: int, pad: int) -> None:
        self.size = size
        self.pad = pad

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a random crop of the reflected image."""
        room = 2 * self.pad - self.size + 1
        top, left = (int(torch.randint(side + room, ())) for side in (image.height, image.width))
        rows = _reflected(image.height, self.pad)[top : top + self.size]
        columns = _reflected(image.width, self.pad)[left : left + self.size]
        pixels = np.asarray(image).take(rows, axis=0).take(columns, axis=1)
        return Image.frombytes("RGB", (self.size, self.size), pixels.tobytes())

    def __repr__(self) -> str:
        return f"PadCrop(size={self.size}, pad={self.pad})"


@cache
def _reflected(side: int, pad: int) -> np.ndarray:
    """Return the index of the pixel that stands at each place of an axis of `side` pixels, reflected by `pad`."""
    return np.pad(np.arange(side), pad, mode="reflect")


class ToTensor:
    """8-bit PIL RGB -> float tensor (3, H, W) of values in 0..1."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image as a tensor."""
        # much faster for small images than torchvision's own conversion
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def __repr__(self) -> str:
        return "ToTensor()"


class Lighting:
    """PCA lighting noise (Krizhevsky et al., 2012) on a tensor (3, H, W) of values in 0..1.

    With a_k ~ N(0, std), eigenvalues l_k and eigenvectors v_k, channel c gets the shift sum_k v_k[c] a_k l_k: an image
    changes along the principal components of natural colours. `released` multiplies along the other axis, as the
    released recipe of FishNet does (its vectors are also stored from the smallest component to the largest): the shift
    of channel c is sum_k v_{2-c}[k] a_k l_k, which is not along them.
    """

    def __init__(self, std: float, released: bool = False) -> None:
        self.std = std
        self.released = released
        vectors = torch.tensor(_EIGENVECTORS)
        self.matrix = (vectors.flip(1).T if released else vectors) * torch.tensor(_EIGENVALUES)

    def __call__(self, image: Tensor) -> Tensor:
        """Add one random shift, in place."""
        noise = torch.randn(3) * self.std
        return image.add_((self.matrix @ noise).view(3, 1, 1))

    def __repr__(self) -> str:
        return f"Lighting(std={self.std}{', released=True' if self.released else ''})"


class Normalize:
    """(x - mean) / std per channel, in place."""

    def __init__(self, preprocess: PreprocessConfig) -> None:
        self.mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, normalised."""
        return image.sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        mean, std = ([round(value, 4) for value in tensor.flatten().tolist()] for tensor in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"


class Erasing:
    """timm's random erasing with noise per pixel, on a normalised tensor (3, H, W)."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.erase = RandomErasing(probability, mode="pixel", device="cpu")

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, with or without an erased rectangle."""
        return self.erase(image)

    def __repr__(self) -> str:
        return f"RandomErasing(p={self.probability})"


def _crop(augment: AugmentConfig, preprocess: PreprocessConfig, size: int) -> list[Callable]:
    if augment.crop == "random_resized":
        interpolation = InterpolationMode(preprocess.interpolation)
        return [v2.RandomResizedCrop(size, augment.scale, augment.ratio, interpolation, antialias=True)]
    if augment.crop == "pad":
        return [Resize(size, preprocess), PadCrop(size, augment.pad)]
    return [Resize((size, size), preprocess)]


def _check_augment(augment: AugmentConfig, size: int) -> None:
    if augment.crop not in ("random_resized", "pad", "resize"):
        raise UsageError(f"augment.crop: {augment.crop!r} is none of random_resized, pad, resize")
    for name in ("scale", "ratio"):
        low, high = getattr(augment, name)
        if not 0 < low <= high or (name == "scale" and high > 1):
            bounds = "0 < low <= high <= 1" if name == "scale" else "0 < low <= high"
            raise UsageError(f"augment.{name}: [{low}, {high}] is not a range with {bounds}")
    for name in ("flip", "random_erasing"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UsageError(f"augment.{name}: {getattr(augment, name)} is not a probability between 0 and 1")
    for name in ("color_jitter", "lighting"):
        if getattr(augment, name) < 0:
            raise UsageError(f"augment.{name}: {getattr(augment, name)} is negative")
    if augment.crop == "pad" and not 0 <= augment.pad < size:
        raise UsageError(f"augment.pad: {augment.pad} is not between 0 and {size - 1}, one less than the image side")


def _check_preprocess(preprocess: PreprocessConfig, size: int) -> None:
    if size < 1:
        raise UsageError(f"size: images of {size} pixels do not exist; use 32 or more")
    if not 0 < preprocess.crop_pct <= 1:
        raise UsageError(f"preprocess.crop_pct: {preprocess.crop_pct} is not a share above 0 and up to 1")
    if preprocess.interpolation not in ("nearest", "bilinear", "bicubic"):
        raise UsageError(f"preprocess.interpolation: {preprocess.interpolation!r} is not nearest, bilinear or bicubic")
    if min(preprocess.std) <= 0:
        raise UsageError(f"preprocess.std: {list(preprocess.std)} holds a value that is not above 0")
