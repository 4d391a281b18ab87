"""Transforms from a PIL image to a normalized tensor: augmentation for training, a fixed resize and crop otherwise.

Geometry and color operations work on 8-bit PIL images, lighting on a tensor of values in 0..1. Normalization follows,
and last random erasing, which fills its rectangle with normalized noise.
"""

from __future__ import annotations

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
from fishnet.runner.prepare import Preparation, normalized

Transform = Callable[[Image.Image], Tensor]

_NUMBER = r"\d+(\.\d+)?"
_POLICY = re.compile(rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|tweights|t3aw|t3a))*")

# Principal components of ImageNet's pixel colors in 0..1 (Krizhevsky et al., 2012): one eigenvector per column, one
# row per channel (R, G, B).
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
    """Return the transform of training images: PIL RGB -> normalized float tensor (3, size, size); picklable.

    It draws from the global generators of `random`, NumPy and torch, which the data set seeds for each sample.

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
    """Return the transform for evaluation: PIL RGB -> normalized float tensor (3, size, size); picklable.

    The shorter side is resized to floor(size / crop_pct), then the center is cropped. An image that already has the
    right size is not resampled.

    Raises:
        UsageError: A setting is out of range.
    """
    _check_preprocess(preprocess, size)
    return Prepare(preprocess, size)


class Prepare:
    """Resize, center crop and normalization of evaluation and prediction; the code is that of exported networks."""

    def __init__(self, preprocess: PreprocessConfig, size: int) -> None:
        self.preparation = Preparation(
            "square", size, preprocess.mean, preprocess.std, preprocess.crop_pct, preprocess.interpolation
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the normalized image, float (3, size, size)."""
        how = self.preparation
        return torch.from_numpy(normalized(how(image), how.mean, how.std))

    def __repr__(self) -> str:
        return repr(self.preparation)


def denormalize(images: Tensor, preprocess: PreprocessConfig) -> Tensor:
    """Undo the normalization of images (..., 3, H, W); returns uint8 of the same shape, rounded."""
    shape = (3, 1, 1)
    mean = torch.tensor(preprocess.mean, device=images.device).view(shape)
    std = torch.tensor(preprocess.std, device=images.device).view(shape)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Pipeline:
    """Composition of transforms; its repr lists them."""

    def __init__(self, steps: list[Callable]) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> Tensor:
        """Apply all steps in order."""
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value

    def __repr__(self) -> str:
        return "\n".join(["Pipeline:", *(f"  {step!r}" for step in self.steps)])


class RandAugment:
    """timm's RandAugment on PIL images; areas uncovered by rotation and shear are filled with the mean color."""

    def __init__(self, policy: str, preprocess: PreprocessConfig, size: int) -> None:
        self.policy = policy
        # as in timm's training script: translations up to 45 % of the side
        options = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * m) for m in preprocess.mean)}
        # timm silently ignores unknown parts
        if not _POLICY.fullmatch(policy):
            raise UsageError(
                f"augment.rand_augment: {policy!r} is not a RandAugment policy of timm such as rand-m9-mstd0.5-inc1 "
                "(parts: m, n, p, mstd, mmax, inc, t)"
            )
        self.augment = rand_augment_transform(policy, options)
        for operation in self.augment.ops:
            if operation.aug_fn is _timm_posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply the random operations of the policy."""
        return self.augment(image)

    def __repr__(self) -> str:
        return f"RandAugment({self.policy})"


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Posterize to at least one bit: timm's strongest level keeps none, which newer versions of Pillow reject."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


class Flip:
    """Random horizontal flip; several times faster than torchvision's for small images."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        """Flip the image with the given probability."""
        mirrored = float(torch.rand(())) < self.probability
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    def __repr__(self) -> str:
        return f"Flip(p={self.probability})"


class Resize:
    """torchvision's Resize, skipped for images of the right size, since the call alone takes 0.04 ms."""

    def __init__(self, size: int | tuple[int, int], preprocess: PreprocessConfig) -> None:
        self.size = size
        self.resize = v2.Resize(size, InterpolationMode(preprocess.interpolation), antialias=True)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `size` pixels, or both sides if `size` is (height, width)."""
        fits = image.size == self.size[::-1] if isinstance(self.size, tuple) else min(image.size) == self.size
        return image if fits else self.resize(image)

    def __repr__(self) -> str:
        return repr(self.resize)


class PadCrop:
    """Random crop of size x size pixels from an image padded by `pad` reflected pixels (the edge is not repeated).

    Equal to torchvision's RandomCrop(padding_mode="reflect"), whose padding takes most of the time of loading a
    32-pixel image; here the pixels of the crop are gathered directly.
    """

    def __init__(self, size: int, pad: int) -> None:
        self.size = size
        self.pad = pad

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a random crop of the padded image."""
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
    """Return the source index of each pixel along an axis of `side` pixels padded by `pad` reflected pixels."""
    return np.pad(np.arange(side), pad, mode="reflect")


class ToTensor:
    """Convert 8-bit PIL RGB to a float tensor (3, H, W) of values in 0..1."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert the image."""
        # much faster than torchvision's conversion for small images
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def __repr__(self) -> str:
        return "ToTensor()"


class Lighting:
    """PCA lighting noise (Krizhevsky et al., 2012) on a tensor (3, H, W) of values in 0..1.

    With a_k ~ N(0, std), eigenvalues l_k and eigenvectors v_k, the shift of channel c is sum_k v_k[c] a_k l_k, so
    colors change along the principal components. `released` multiplies along the other axis, as the released recipe of
    FishNet does (its vectors are also stored from the smallest component to the largest): the shift of channel c is
    sum_k v_{2-c}[k] a_k l_k, which is not along the principal components.
    """

    def __init__(self, std: float, released: bool = False) -> None:
        self.std = std
        self.released = released
        vectors = torch.tensor(_EIGENVECTORS)
        self.matrix = (vectors.flip(1).T if released else vectors) * torch.tensor(_EIGENVALUES)

    def __call__(self, image: Tensor) -> Tensor:
        """Add a random shift to the image in place."""
        noise = torch.randn(3) * self.std
        return image.add_((self.matrix @ noise).view(3, 1, 1))

    def __repr__(self) -> str:
        return f"Lighting(std={self.std}{', released=True' if self.released else ''})"


class Normalize:
    """Normalize each channel in place: (x - mean) / std."""

    def __init__(self, preprocess: PreprocessConfig) -> None:
        self.mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Normalize the image."""
        return image.sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        mean, std = ([round(value, 4) for value in tensor.flatten().tolist()] for tensor in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"


class Erasing:
    """timm's random erasing with per-pixel noise on a normalized tensor (3, H, W)."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.erase = RandomErasing(probability, mode="pixel", device="cpu")

    def __call__(self, image: Tensor) -> Tensor:
        """Erase a random rectangle with the given probability."""
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
        raise UsageError(f"augment.crop must be random_resized, pad or resize, not {augment.crop!r}")
    for name in ("scale", "ratio"):
        low, high = getattr(augment, name)
        if not 0 < low <= high or (name == "scale" and high > 1):
            bounds = "0 < low <= high <= 1" if name == "scale" else "0 < low <= high"
            raise UsageError(f"augment.{name}: [{low}, {high}] must satisfy {bounds}")
    for name in ("flip", "random_erasing"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UsageError(f"augment.{name} must be a probability between 0 and 1, not {getattr(augment, name)}")
    for name in ("color_jitter", "lighting"):
        if getattr(augment, name) < 0:
            raise UsageError(f"augment.{name} must not be negative, but is {getattr(augment, name)}")
    if augment.crop == "pad" and not 0 <= augment.pad < size:
        raise UsageError(f"augment.pad must be between 0 and {size - 1} (image side minus 1), not {augment.pad}")


def _check_preprocess(preprocess: PreprocessConfig, size: int) -> None:
    if size < 1:
        raise UsageError(f"size must be at least 1 pixel, not {size}; use 32 or more")
    if not 0 < preprocess.crop_pct <= 1:
        raise UsageError(f"preprocess.crop_pct must be above 0 and at most 1, not {preprocess.crop_pct}")
    if preprocess.interpolation not in ("nearest", "bilinear", "bicubic"):
        raise UsageError(
            f"preprocess.interpolation must be nearest, bilinear or bicubic, not {preprocess.interpolation!r}"
        )
    if min(preprocess.std) <= 0:
        raise UsageError(f"preprocess.std must be above 0 for every channel, not {list(preprocess.std)}")
