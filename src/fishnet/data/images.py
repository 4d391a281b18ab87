"""Reading of single images: any file that Pillow decodes becomes 8-bit RGB, and a bad one becomes one clear error."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fishnet.errors import FishnetError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
"""Endings (lower case) of the files that count as images of a data set."""

_LONGEST_BAD_RUN = 1000
Loaded = TypeVar("Loaded")
_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImageError(FishnetError):
    """An image that cannot be used; the message names the file, the reason and the way out.

    A loader process hands on only the text of its traceback, whose last line is the message; it is cut out again here,
    so that a reader sees the same line whether or not workers were in use.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class BadImageSkipper:
    """Part of a data set: where bad images may be skipped, the next good one stands in, and the bad one is noted.

    Attributes:
        task: Whose `data check` lists every problem.
        skip_bad: Whether bad images may be skipped; may be set.
        bad_images: Paths that could not be read so far, by this process.
    """

    task: ClassVar[str]

    def __init__(self) -> None:
        self.skip_bad = False
        self.bad_images: list[str] = []

    def load_good(
        self, index: int, length: int, load: Callable[[int], Loaded], path: Callable[[int], Any]
    ) -> tuple[Loaded, int]:
        """Return what `load` gives for `index`, or for the next good image, and the index of the one it gave.

        Args:
            index: Image that was asked for.
            length: Number of images.
            load: Index -> image; raises BadImageError.
            path: Index -> what to call the image.

        Raises:
            BadImageError: The image is bad, and bad ones may not be skipped.
            FishnetError: Very many images in a row are bad.
        """
        tries = min(length, _LONGEST_BAD_RUN)
        for step in range(tries):
            place = (index + step) % length
            try:
                return load(place), place
            except BadImageError:
                if not self.skip_bad:
                    raise
                name = str(path(place))
                if name not in self.bad_images:
                    self.bad_images.append(name)
        raise FishnetError(
            f"{tries} images in a row cannot be read, from {path(index)} on; is the data still there? "
            f"`fishnet data check {self.task} DIR` lists every problem"
        )


def read_image(source: Path | str | bytes, name: str = "", upright: bool = True) -> Image.Image:
    """Decode an image file, or its bytes, wholly, to an RGB image of 8 bits per channel, as a viewer would show it.

    The format is found by content. Of an animation the first frame is taken. EXIF orientation is applied. Transparency
    is composed on white. 16-bit greyscale is scaled by 255/65535; CMYK goes through Pillow (Adobe's inverted values
    included); palette, bilevel and greyscale images become RGB.

    Args:
        source: Path of a file, or the content of one.
        name: What to call the image in errors; the path where empty.
        upright: Apply the EXIF orientation; else the pixels stay as they are stored.

    Raises:
        BadImageError: The file is missing, no image, damaged or truncated, of a kind without defined colours
            (floating point), or larger than `PIL.Image.MAX_IMAGE_PIXELS` (about 89 megapixels; a decompression bomb).
    """
    label = name or ("in memory" if isinstance(source, bytes) else str(source))
    content = source if isinstance(source, bytes) else _read_bytes(source, label)
    try:
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            return to_rgb(image, upright)
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        raise bad_image(label, explain(error, content)) from error


def bad_image(name: str, reason: str) -> BadImageError:
    """Return the error of an image that cannot be used."""
    return BadImageError(
        f"cannot use the image {name}: {reason}; replace or remove it, or leave such images out with --bad-images skip"
    )


class ImageShape(NamedTuple):
    """Size of an image as its pixels are stored, and how they are turned to be shown."""

    stored: tuple[int, int]
    """Width and height."""
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as a viewer, and `read_image`, show the image."""
        return self.stored[::-1] if self.orientation in (5, 6, 7, 8) else self.stored


def image_shape(path: Path) -> ImageShape:
    """Return the size and the EXIF orientation of an image file from its header.

    Raises:
        BadImageError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageShape(image.size, _orientation(image))
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else explain(error, b"?")
        raise bad_image(str(path), reason) from error


def turned_box(box: Sequence[float], stored: tuple[int, int], orientation: int) -> tuple[float, float, float, float]:
    """Return a box of the stored pixels of an image in pixels of the upright image.

    Args:
        box: x, y, width, height.
        stored: Width and height of the stored image.
        orientation: EXIF orientation.
    """
    x, y, w, h = box
    left, top = stored[0] - x - w, stored[1] - y - h  # in the image mirrored along either axis
    places = {
        1: (x, y),
        2: (left, y),
        3: (left, top),
        4: (x, top),
        5: (y, x),
        6: (top, x),
        7: (top, left),
        8: (y, left),
    }
    across, down = places[orientation]
    return (across, down, h, w) if orientation >= 5 else (across, down, w, h)


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Return an opened image as 8-bit RGB; see `read_image`. Decodes it, so decoding errors surface here."""
    image.load()
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range, save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def explain(error: Exception, content: bytes) -> str:
    """Return in a few words why decoding of `content` failed with `error`."""
    if not content:
        return "the file is empty"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels (a decompression bomb?), scale it down"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of an unknown format"
    if is_truncated(error):
        return "the file is truncated or damaged"
    text = " ".join(str(error).split())
    return f"it cannot be decoded ({text or type(error).__name__})"


def is_truncated(error: Exception) -> bool:
    """Tell whether Pillow's `error` means that an image ends too early."""
    text = str(error).lower()
    return isinstance(error, EOFError) or any(word in text for word in ("truncat", "broken", "unexpected end"))


def _read_bytes(path: Path | str, label: str) -> bytes:
    try:
        with io.FileIO(path) as stream:  # for small images much of the time would go into Path.read_bytes
            return stream.readall()
    except FileNotFoundError:
        raise bad_image(label, "there is no such file") from None
    except OSError as error:
        raise bad_image(label, f"the file cannot be read ({error.strerror or error})") from error


def refuse_bomb(image: Image.Image) -> None:
    """Raise above Pillow's warning limit already: a bomb is 10 times the size of a panorama, and costs memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or where the EXIF data is damaged."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
        return orientation if 1 <= orientation <= 8 else 1
    except Exception:  # the pixels are fine, so a broken note about them is no reason to stop
        return 1
