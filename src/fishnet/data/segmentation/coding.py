"""How label files encode classes: class indices, other values such as 0 and 255, or colors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fishnet.data.geometry import IGNORE
from fishnet.errors import FishnetError, did_you_mean
from fishnet.files import Json

WIDE_IGNORE = 65535
"""Value of ignored pixels in label maps of more than 255 classes."""
_MOST_CLASSES = 65535
_MOST_VALUES = 65536
_GRAY = ("L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")

Color = tuple[int, int, int]


class LabelError(Exception):
    """A label file that cannot be used; the text is the reason.

    Attributes:
        kind: Kind of finding in the report of a check.
        unknown: Number of pixels of each value, or color as 0xRRGGBB, that is not a class.
    """

    def __init__(self, kind: str, reason: str, unknown: dict[int, int] | None = None) -> None:
        super().__init__(reason)
        self.kind, self.unknown = kind, unknown or {}


class RawLabels(NamedTuple):
    """Content of a label file before its values are translated to classes."""

    values: np.ndarray
    """Integers (H, W): values, or colors as 0xRRGGBB."""
    colors: bool
    palette: bool = False
    """Whether the file has a palette, so that viewers show its values as colors."""


@dataclass(frozen=True)
class LabelCoding:
    """Classes and their encoding in label files.

    Attributes:
        classes: Class names by class index.
        ignored: Values of pixels to ignore; the first is the one that is written.
        values: Class index by value; None: the values are class indices.
        palette: Color of each class, in files with colors.
        ignored_color: Color of pixels to ignore, in files with colors.
        stuff: Names of the classes that are stuff in panoptic maps; None: not stated.
    """

    classes: list[str]
    ignored: tuple[int, ...] = (IGNORE,)
    values: dict[int, int] | None = None
    palette: list[Color] | None = None
    ignored_color: Color | None = None
    stuff: list[str] | None = None

    @property
    def ignore_index(self) -> int:
        """Value of ignored pixels in decoded label maps: 255, or 65535 for more than 255 classes."""
        return IGNORE if len(self.classes) <= IGNORE else WIDE_IGNORE

    @property
    def dtype(self) -> type[np.uint8] | type[np.int64]:
        """Type of decoded label maps."""
        return np.uint8 if len(self.classes) <= IGNORE else np.int64

    @property
    def has_colors(self) -> bool:
        """Whether RGB label files have the colors of a palette."""
        return self.palette is not None

    def value_of(self, index: int) -> int:
        """Return the value of a class; the smallest if there are several."""
        if self.values is None:
            return index
        return min(value for value, number in self.values.items() if number == index)

    def decode(self, raw: RawLabels) -> np.ndarray:
        """Return a label map (H, W) of class indices and `ignore_index`.

        Raises:
            LabelError: The file has colors but the coding has none, or values that are not classes.
        """
        indices = self._of_colors(raw.values) if raw.colors else self._of_values(raw.values)
        unknown = indices < 0
        if unknown.any():
            values, counts = np.unique(raw.values[unknown], return_counts=True)
            found = dict(zip(values.tolist(), counts.tolist(), strict=True))
            raise LabelError("unknown values", _named(found, raw.colors), found)
        return indices.astype(self.dtype)

    def encode(self, label_map: np.ndarray, colors: bool | None = None) -> Image.Image:
        """Return a label map (H, W) as an image in the encoding of the label files.

        Args:
            label_map: Class indices, and `ignore_index` where pixels are ignored.
            colors: Write the colors of the palette; None: if there is a palette.

        Raises:
            ValueError: Pixels are ignored, but no value or color is defined for them.
        """
        colors = self.palette is not None if colors is None else colors
        entries: Sequence[int | Color]
        blank: int | Color | None
        if colors and self.palette is not None:
            entries, blank = self.palette, self.ignored_color
        else:
            entries = [self.value_of(index) for index in range(len(self.classes))]
            blank = self.ignored[0] if self.ignored else None
        lookup = np.zeros((self.ignore_index + 1, *np.shape(entries)[1:]), np.uint16)
        lookup[: len(entries)] = entries
        if blank is not None:
            lookup[self.ignore_index] = blank
        elif (label_map == self.ignore_index).any():
            raise ValueError("the label map has ignored pixels, but no value is defined for them")
        wide = lookup.max() > np.iinfo(np.uint8).max
        return Image.fromarray(lookup[label_map].astype(np.uint16 if wide else np.uint8))

    def to_dict(self) -> Json:
        """Return the coding in the form of classes.json."""
        document: Json = {"classes": list(self.classes)}
        document["ignore_index"] = self.ignored[0] if len(self.ignored) == 1 else list(self.ignored) or None
        if self.values is not None:
            document["values"] = {str(value): self.classes[index] for value, index in sorted(self.values.items())}
        if self.palette is not None:
            document["palette"] = [list(color) for color in self.palette]
        if self.ignored_color is not None:
            document["ignore_color"] = list(self.ignored_color)
        if self.stuff is not None:
            document["stuff"] = list(self.stuff)
        return document

    @cached_property
    def _table(self) -> np.ndarray:
        """Class index by value, int32 (65536,); -1: no class."""
        table = np.full(_MOST_VALUES, -1, np.int32)
        values = {index: index for index in range(len(self.classes))} if self.values is None else self.values
        table[list(values)] = list(values.values())
        table[list(self.ignored)] = self.ignore_index
        return table

    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Colors as 0xRRGGBB in ascending order, and the class index of each."""
        colors = list(self.palette or [])
        indices = list(range(len(colors)))
        if self.ignored_color is not None:
            colors.append(self.ignored_color)
            indices.append(self.ignore_index)
        codes = np.array([packed(color) for color in colors], np.int64)
        order = np.argsort(codes)
        return codes[order], np.array(indices, np.int32)[order]

    def _of_values(self, values: np.ndarray) -> np.ndarray:
        if values.dtype == np.bool_:
            # a file of one bit per pixel is shown, and read by other programs, as 0 and 255
            values = values * np.uint8(255 if self._table[1] < 0 else 1)
        if values.dtype == np.uint8:
            return self._table[values]
        return np.where((values < 0) | (values >= _MOST_VALUES), -1, self._table[values.clip(0, _MOST_VALUES - 1)])

    def _of_colors(self, values: np.ndarray) -> np.ndarray:
        if self.palette is None:
            raise LabelError("label format", "it has colors (RGB), but classes.json has no `palette` that defines them")
        codes, indices = self._codes
        place = np.searchsorted(codes, values).clip(max=len(codes) - 1)
        return np.where(codes[place] == values, indices[place], -1)


def raw_labels(image: Image.Image, colored: bool = False) -> RawLabels:
    """Read the values of an opened label file; of a file with a palette its indices, not its colors.

    Values of 16 bits are not scaled.

    Args:
        image: Label file.
        colored: Whether RGB files have colors of a palette; otherwise three equal channels are a single one. A gray
            color, such as black, must not be taken for a value: a label map of it alone has three equal channels too.

    Raises:
        LabelError: The pixels are no integers of one channel, and no colors, or some are transparent.
    """
    image.load()
    if image.mode == "1" or image.mode in _GRAY:
        return RawLabels(np.asarray(image), False, image.mode == "P")
    if image.mode in ("LA", "PA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise LabelError("label format", "it has transparent pixels; save it without alpha channel")
        values = np.asarray(image)[..., :-1].astype(np.int32)
    elif image.mode == "RGB":
        values = np.asarray(image).astype(np.int32)
    else:
        raise LabelError("label format", f"its pixels ({image.mode}) are neither classes nor RGB colors")
    if values.shape[-1] == 1 or (not colored and (values[..., :1] == values[..., 1:]).all()):
        return RawLabels(values[..., 0], False, image.mode == "PA")
    return RawLabels((values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2], True)


def packed(color: Sequence[int]) -> int:
    """Return a color as 0xRRGGBB."""
    return int(color[0]) << 16 | int(color[1]) << 8 | int(color[2])


def unpacked(code: int) -> Color:
    """Return the color of 0xRRGGBB."""
    return code >> 16, code >> 8 & 255, code & 255


def _named(found: dict[int, int], colors: bool) -> str:
    """Return values that are not classes with their numbers of pixels, by descending frequency."""
    most = sorted(found.items(), key=lambda item: -item[1])
    shown = [f"{list(unpacked(value)) if colors else value} ({count:,} pixels)" for value, count in most[:5]]
    more = f" and {len(most) - 5} more" if len(most) > 5 else ""
    what = ("colors" if colors else "values") if len(most) > 1 else ("color" if colors else "value")
    verdict = "are not classes" if len(most) > 1 else "is not a class"
    return f"the {what} {', '.join(shown)}{more} of the label map {verdict}"


def read_coding(path: Path) -> LabelCoding:
    """Read a classes.json; see `parse_coding`.

    Raises:
        FishnetError: The file is missing or cannot be used.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FishnetError(
            f"{path} is missing; write the names of the classes, in the order of the values of the label maps: "
            '{"classes": ["background", "cat"], "ignore_index": 255}'
        ) from None
    except (ValueError, RecursionError) as error:
        raise FishnetError(f"{path} is not valid JSON ({error}); create it again") from error
    return parse_coding(document, str(path))


def parse_coding(document: object, name: str) -> LabelCoding:
    """Return the coding that the content of a classes.json describes.

    Args:
        document: List of names, or a dictionary with `classes`, and optionally `ignore_index`, `values`, `palette`,
            `stuff`.
        name: Name of the file in messages.

    Raises:
        FishnetError: The file is invalid; the message says what to correct.
    """
    document = {"classes": document} if isinstance(document, list) else document
    if not isinstance(document, dict):
        raise FishnetError(f'{name} must be {{"classes": [...], "ignore_index": 255}}; correct it')
    named = _values(document.get("values"), name)
    listed = document.get("classes", list(dict.fromkeys(named.values())) if named else None)
    classes = _classes(listed, name)
    values = None
    if named is not None:
        if unknown := [label for label in named.values() if label not in classes]:
            raise FishnetError(
                f"{name}: `values` names {unknown[0]!r}, which is no class.{did_you_mean(unknown[0], classes)}"
            )
        values = {value: classes.index(label) for value, label in named.items()}
        if absent := set(range(len(classes))) - set(values.values()):
            raise FishnetError(f"{name}: `values` has no value for the class {classes[min(absent)]!r}; add it")
    taken = set(range(len(classes))) if values is None else set(values)
    ignored = _ignored(document, taken, classes, name)
    palette, blank = document.get("palette"), document.get("ignore_color")
    colors = None if palette is None else _palette(palette, classes, name)
    ignored_color = None if blank is None else _color(blank, f"{name}: `ignore_color`")
    if colors and ignored_color in colors:
        raise FishnetError(
            f"{name}: `ignore_color` {list(ignored_color or ())} is also the color of "
            f"{classes[colors.index(ignored_color or (0, 0, 0))]!r}; every color must have one meaning"
        )
    return LabelCoding(classes, ignored, values, colors, ignored_color, _stuff(document.get("stuff"), classes, name))


def _stuff(stuff: object, classes: list[str], name: str) -> list[str] | None:
    if stuff is None:
        return None
    if not isinstance(stuff, list) or not all(isinstance(one, str) for one in stuff):
        raise FishnetError(f"{name}: `stuff` must be a list of classes, such as [{json.dumps(classes[0])}]")
    if unknown := [one for one in stuff if one not in classes]:
        raise FishnetError(
            f"{name}: `stuff` names {unknown[0]!r}, which is no class.{did_you_mean(unknown[0], classes)}"
        )
    return stuff


def _classes(listed: object, name: str) -> list[str]:
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) and one.strip() for one in listed):
        raise FishnetError(f"{name}: `classes` must be a non-empty list of names")
    if len(set(listed)) < len(listed):
        twice = sorted({one for one in listed if listed.count(one) > 1})
        raise FishnetError(f"{name} lists the same class twice: {', '.join(twice[:10])}")
    if len(listed) == 1:
        raise FishnetError(
            f"{name} lists one class only ({listed[0]!r}), so that there is nothing to decide; name what the other "
            'pixels are too, such as "background"'
        )
    if len(listed) > _MOST_CLASSES:
        raise FishnetError(f"{name} lists {len(listed)} classes; at most {_MOST_CLASSES} are possible")
    return listed


def _values(values: object, name: str) -> dict[int, str] | None:
    if values is None:
        return None
    try:
        named = {int(value): label for value, label in values.items()}  # type: ignore[attr-defined]
        if not named or not all(isinstance(label, str) for label in named.values()):
            raise ValueError
        if min(named) < 0 or max(named) >= _MOST_VALUES:
            raise ValueError
    except (AttributeError, ValueError):
        raise FishnetError(
            f'{name}: `values` must give the name of a class to values, such as {{"0": "background", "255": "object"}}'
        ) from None
    return named


def _ignored(document: Json, taken: set[int], classes: list[str], name: str) -> tuple[int, ...]:
    """Return the values to ignore; the default is 255 unless it is a class."""
    if "ignore_index" not in document:
        usual = IGNORE if len(classes) <= IGNORE else WIDE_IGNORE
        return () if usual in taken else (usual,)
    stated = document["ignore_index"]
    found = [] if stated is None else stated if isinstance(stated, list) else [stated]
    if not all(type(value) is int and 0 <= value < _MOST_VALUES for value in found):
        raise FishnetError(
            f"{name}: `ignore_index` must be a value from 0 to 65535, a list of them, or null, not {stated}"
        )
    if both := [value for value in found if value in taken]:
        raise FishnetError(
            f"{name}: `ignore_index` {both[0]} is also a class; choose another value, or map "
            "values to classes by `values`"
        )
    return tuple(found)


def _palette(palette: object, classes: list[str], name: str) -> list[Color]:
    if not isinstance(palette, list) or len(palette) != len(classes):
        count = len(palette) if isinstance(palette, list) else "no list"
        raise FishnetError(f"{name}: `palette` needs one color per class: {len(classes)} classes, {count} colors")
    colors = [_color(color, f"{name}: `palette`") for color in palette]
    for number, color in enumerate(colors):
        if color in colors[:number]:
            first = classes[colors.index(color)]
            raise FishnetError(f"{name}: {first!r} and {classes[number]!r} have the same color {list(color)}")
    return colors


def _color(color: object, where: str) -> Color:
    if not isinstance(color, list) or len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
        raise FishnetError(f"{where} must consist of three numbers from 0 to 255 (red, green, blue), not {color}")
    return color[0], color[1], color[2]
