"""Guesses about the encoding of label files whose values are not classes."""

from __future__ import annotations

from collections import Counter

from fishnet.data.segmentation.coding import LabelCoding, unpacked
from fishnet.data.segmentation.names import CITYSCAPES_CLASSES, CITYSCAPES_VALUES

_LISTED = 12
_PHOTO = 64
"""More different values than that, beyond the classes, are those of a photo or of a lossy format."""


def guess_values(values: Counter[int], coding: LabelCoding, palette: bool = False) -> str:
    """Return a sentence with the probable meaning of the values of label maps, and what to do.

    Args:
        values: Pixels of each value in all label maps of a split, the valid values too.
        coding: Coding that they do not match.
        palette: Whether the files have a palette.
    """
    found, classes = sorted(values), coding.classes
    listed = ", ".join(map(str, found[:_LISTED])) + (", ..." if len(found) > _LISTED else "")
    unknown = [value for value in found if value not in coding.ignored and not _is_class(value, coding)]
    if found in ([0, 255], [0, 1, 255]) and len(classes) == 2:
        first, second = classes
        return (
            "these look like masks of 0 and 255, where 255 is the object; add "
            f'"values": {{"0": "{first}", "255": "{second}"}} to classes.json'
            ' and, if it is there, set "ignore_index" to null'
        )
    if unknown and 255 in unknown and len(unknown) == 1:
        return (
            '255 usually marks pixels to ignore; set "ignore_index": 255 in classes.json, or name its class in "values"'
        )
    if found and found[-1] >= 1000 and len({value // 1000 for value in found if value >= 1000}) <= len(classes):
        return f"values such as {found[-1]} look like ids of objects (class x 1000 + number), not of classes"
    if len(classes) == len(CITYSCAPES_CLASSES) and set(unknown) <= {*range(34), 255} and max(found) > len(classes):
        values_text = ", ".join(f'"{value}": ...' for value in list(CITYSCAPES_VALUES)[:2])
        return (
            "these look like the label ids of Cityscapes, which are not its 19 train ids; pass the original folder "
            f'(leftImg8bit, gtFine), or add "values": {{{values_text}}} to classes.json'
        )
    if len(unknown) > _PHOTO:
        return (
            f"{len(found)} different values are those of a photo, or of label maps that were resized smoothly or saved "
            "as JPEG; make them again, with nearest-neighbor resizing and as PNG"
        )
    if found and min(found) >= 1 and unknown == [len(classes)]:
        return f'the classes are counted from 1; add "values": {{"1": "{classes[0]}", ...}} to classes.json'
    step = found[1] - found[0] if len(found) > 1 else 0
    if step > 1 and len(found) > 2 and found[-1] <= 255 and _evenly_spaced(found):
        return f'the values {listed} are gray levels for viewing; say in "values" of classes.json which class each is'
    if palette:
        return (
            f"the files have a palette, whose indices ({listed}) are read, not its colors; classes.json must list a "
            "class for each index"
        )
    return f"the values are {listed}; classes.json lists {len(classes)} classes"


def guess_colors(colors: Counter[int], coding: LabelCoding) -> str:
    """Return a sentence with the probable meaning of the colors of label maps, and what to do.

    Args:
        colors: Pixels of each color, as 0xRRGGBB, in all label maps of a split.
        coding: Coding that they do not match.
    """
    most = [color for color, _ in colors.most_common(_LISTED)]
    listed = ", ".join(str(list(unpacked(color))) for color in most) + (", ..." if len(colors) > _LISTED else "")
    if len(colors) > 4 * len(coding.classes) + _PHOTO:
        return (
            f"{len(colors)} different colors are those of photos, or of label maps that were resized smoothly or saved "
            "as JPEG; make them again, with nearest-neighbor resizing and as PNG"
        )
    if coding.palette is None:
        return (
            f'the label maps are colored with {len(colors)} colors; add "palette" to classes.json, the color of each '
            f'class in the order of "classes", and "ignore_color" for pixels to ignore, from: {listed}'
        )
    return (
        f'the palette of classes.json lacks colors; add classes for them, or "ignore_color" for one color whose '
        f"pixels are ignored: {listed}"
    )


def _is_class(value: int, coding: LabelCoding) -> bool:
    return value in coding.values if coding.values is not None else value < len(coding.classes)


def _evenly_spaced(found: list[int]) -> bool:
    """Return whether values are about the multiples of 255 / n, as tools write them that make classes visible."""
    step = 255 / (len(found) - 1)
    return found[0] == 0 and all(abs(value - number * step) <= 1 for number, value in enumerate(found))
