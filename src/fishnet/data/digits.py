"""Handwritten digits from scikit-learn as an image folder, for demos without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fishnet.errors import UsageError


def write_digits(out: Path, size: int = 32, val: float = 0.25) -> Path:
    """Write the 1,797 digits as `out/{train,val}/<digit>/<index>.png` and return `out`.

    Args:
        out: Output folder; files of an earlier call are overwritten.
        size: Side of the written images in pixels; the originals have 8.
        val: Fraction of each digit's images in the val split.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits data set needs scikit-learn: pip install 'fishnet-vision[demo]'") from None
    digits = load_digits()
    out.mkdir(parents=True, exist_ok=True)
    (out / "digits.txt").write_text("Written by fishnet: scikit-learn's handwritten digits.\n", "utf-8")
    for label in range(10):
        indices = np.flatnonzero(digits.target == label)
        held_out = round(len(indices) * val)
        for position, index in enumerate(indices):
            folder = out / ("val" if position < held_out else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (255 - digits.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    return out
