"""Read single images: any file that Pillow decodes becomes 8-bit RGB, any other raises BadImageError."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from PIL import Image

from fishnet.errors import FishnetError
from fishnet.runner.images import explain, is_truncated, orientation_of, refuse_bomb, to_rgb

__all__ = [
    "IMAGE_EXTENSIONS", "MISSING", "BadImageError", "BadImageSkipper", "ImageShape", "bad_image", "explain",
    "image_shape", "is_truncated", "read_image", "refuse_bomb", "to_rgb", "turned_box", "turned_points",
]  # fmt: skip

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
"""Extensions of image files of a data set, in lower case."""

MISSING = "there is no such file"
_LONGEST_BAD_RUN = 1000
Loaded = TypeVar("Loaded")


class BadImageError(FishnetError):
    """Image that cannot be used; the message states the file, the reason and the remedy.

    A worker process passes on only the text of its traceback, whose last line is the message. The message is extracted
    from it here, so it is the same with and without workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class BadImageSkipper:
    """Mixin for data sets: replaces bad images by the next good one if allowed, and records them.

    Attributes:
        task: Task name for the `data check` command that error messages recommend.
        skip_bad: Whether bad images are skipped; may be set.
        bad_images: Paths that this process could not read so far.
    """

    task: ClassVar[str]

    def __init__(self) -> None:
        self.skip_bad = False
        self.bad_images: list[str] = []

    def load_good(
        self, index: int, length: int, load: Callable[[int], Loaded], path: Callable[[int], str | Path]
    ) -> tuple[Loaded, int]:
        """Load the image at `index`, or the next good one if bad images are skipped.

        Args:
            index: Index of the requested image.
            length: Number of images.
            load: Function from an index to an image; raises BadImageError.
            path: Function from an index to the name of the image in messages.

        Returns:
            The result of `load` and the index that it was loaded from.

        Raises:
            BadImageError: The image is bad and `skip_bad` is false.
            FishnetError: 1000 images in a row are bad, or all of a smaller data set.
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
            f"{tries} images in a row cannot be read, starting at {path(index)}; check that the data is still there. "
            f"`fishnet data check {self.task} DIR` lists every problem"
        )


def read_image(source: Path | str | bytes, name: str = "", upright: bool = True) -> Image.Image:
    """Decode an image file, or its bytes, completely to 8-bit RGB, as an image viewer shows it.

    The format is detected from the content. Of an animation the first frame is used. Transparency is composited on
    white. 16-bit grayscale is scaled by 255/65535. CMYK is converted by Pillow (including Adobe's inverted values).
    Palette, bilevel and grayscale images become RGB.

    Args:
        source: Path of a file, or its content.
        name: Name of the image in error messages; the path if empty.
        upright: Apply the EXIF orientation; otherwise the pixels stay as they are stored.

    Raises:
        BadImageError: The file is missing, not an image, damaged or truncated, has no defined value range (floating
            point), or is larger than `PIL.Image.MAX_IMAGE_PIXELS` (about 89 megapixels; a decompression bomb).
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
    """Return the error for an image that cannot be used."""
    return BadImageError(
        f"cannot use the image {name}: {reason}; replace or remove it, or skip bad images with --bad-images skip"
    )


class ImageShape(NamedTuple):
    """Size of an image as stored, and its EXIF orientation."""

    stored: tuple[int, int]
    """Width and height in pixels."""
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height with the EXIF orientation applied, as `read_image` returns the image."""
        return self.stored[::-1] if self.orientation in (5, 6, 7, 8) else self.stored


def image_shape(path: Path) -> ImageShape:
    """Read the size and the EXIF orientation of an image file from its header.

    Raises:
        BadImageError: The file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageShape(image.size, orientation_of(image))
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        reason = MISSING if isinstance(error, FileNotFoundError) else explain(error, b"?")
        raise bad_image(str(path), reason) from error


def turned_box(box: Sequence[float], stored: tuple[int, int], orientation: int) -> tuple[float, float, float, float]:
    """Convert a box from the stored image to the upright image.

    Args:
        box: x, y, width, height in pixels of the stored image.
        stored: Width and height of the stored image in pixels.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        x, y, width, height in pixels of the upright image.
    """
    x, y, w, h = box
    left, top = stored[0] - x - w, stored[1] - y - h  # distances to the right and lower border
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


def turned_points(points: Sequence[float], stored: tuple[int, int], orientation: int) -> list[float]:
    """Convert points x0, y0, x1, y1, ... from the stored image to the upright image; see `turned_box`."""
    pairs = zip(points[::2], points[1::2], strict=True)
    return [value for x, y in pairs for value in turned_box((x, y, 0, 0), stored, orientation)[:2]]


def _read_bytes(path: Path | str, label: str) -> bytes:
    try:
        with io.FileIO(path) as stream:  # Path.read_bytes would take much of the time for small images
            return stream.readall()
    except FileNotFoundError:
        raise bad_image(label, MISSING) from None
    except OSError as error:
        raise bad_image(label, f"the file cannot be read ({error.strerror or error})") from error
