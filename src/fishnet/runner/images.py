"""Decoding of images to 8-bit RGB, as an image viewer shows them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import RunnerError

_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_rgb(source: Path | str | bytes) -> Image.Image:
    """Decode an image file, or its bytes, completely to 8-bit RGB; see `to_rgb`.

    Raises:
        RunnerError: The file is missing, not an image, damaged, or too large.
    """
    label = "in memory" if isinstance(source, bytes) else str(source)
    content = b""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            return to_rgb(image)
    except FileNotFoundError:
        raise RunnerError(f"cannot use the image {label}: there is no such file") from None
    except IsADirectoryError:
        raise RunnerError(f"cannot use the image {label}: it is a folder; name the images in it") from None
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        raise RunnerError(f"cannot use the image {label}: {explain(error, content)}") from error


def opened_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of Pillow to 8-bit RGB; see `to_rgb`.

    Raises:
        RunnerError: It cannot be decoded or converted.
    """
    try:
        return to_rgb(image)
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        raise RunnerError(f"cannot use the image: {explain(error, b'?')}") from error


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Convert an opened image to 8-bit RGB; decodes it, so decoding errors are raised here.

    Of an animation the first frame is used. Transparency is composited on white. 16-bit grayscale is scaled by
    255/65535. CMYK is converted by Pillow (including Adobe's inverted values). Palette, bilevel and grayscale images
    become RGB.

    Args:
        image: Opened image.
        upright: Apply the EXIF orientation; otherwise the pixels stay as they are stored.

    Raises:
        ValueError: The pixels are floating-point numbers, which have no defined range.
    """
    image.load()
    if upright and orientation_of(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the image with 8 or 16 bits per channel")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def explain(error: Exception, content: bytes) -> str:
    """Return the reason, in a few words, why reading or decoding `content` failed with `error`."""
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be read ({error.strerror})"
    if not content:
        return "the file is empty"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels (possibly a decompression bomb); scale it down"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image or has an unknown format"
    if is_truncated(error):
        return "the file is truncated or damaged"
    text = " ".join(str(error).split())
    return f"it cannot be decoded ({text or type(error).__name__})"


def is_truncated(error: Exception) -> bool:
    """Return whether an `error` of Pillow means that an image file is truncated."""
    text = str(error).lower()
    return isinstance(error, EOFError) or any(word in text for word in ("truncat", "broken", "unexpected end"))


def refuse_bomb(image: Image.Image) -> None:
    """Raise DecompressionBombError already above the limit at which Pillow only warns, to save memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if there is none or the EXIF data is damaged."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
        return orientation if 1 <= orientation <= 8 else 1
    except Exception:  # damaged EXIF data does not make the pixels unusable
        return 1
