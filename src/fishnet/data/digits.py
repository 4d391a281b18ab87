"""scikit-learn's bundled handwritten digits as an image folder: data for a demo without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fishnet.errors import UsageError


def write_digits(out: Path, size: int = 32, val: float = 0.25) -> Path:
    """Write the 1,797 digits as `out/{train,val}/<digit>/<index>.png` and return `out`.

    Args:
        out: Folder to write; files of an earlier call are replaced by equal ones.
        size: Side of the written images in pixels; the digits have 8.
        val: Share of each digit that goes to val.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits need the extra: pip install 'fishnet-vision[demo]'") from None
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
