"""Which classes of label maps are stuff in panoptic maps, and which show the objects of the boxes.

A class that belongs to objects must not be stuff too: its pixels would be counted twice, as objects and as a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fishnet.data.images import BadImageError
from fishnet.data.multitask.layout import MultitaskSplit
from fishnet.data.run_lengths import decode

INSIDE = 0.9
"""A class is one of objects if at least this fraction of its pixels lies in their outlines."""
MOST_IMAGES = 200
"""Maximum number of training images that the fraction is measured on."""


class Stuff(NamedTuple):
    """Classes of label maps that are stuff."""

    names: list[str]
    reason: str
    """Why it is these."""

    def describe(self, classes: Sequence[str]) -> str:
        """Return a line that lists stuff and other classes, with the reason and the setting to change it.

        Args:
            classes: Classes of the label maps.
        """
        others = [name for name in classes if name not in self.names]
        text = f"panoptic maps: stuff is {', '.join(self.names) or 'no class'}"
        text += f"; {', '.join(others)} {'is' if len(others) == 1 else 'are'} not" if others else ""
        return f'{text} ({self.reason}); set it by --stuff NAME, or by "stuff": [NAME] in classes.json'


def shared_by_name(pixel: Sequence[str], region: Sequence[str]) -> list[str]:
    """Return the classes of label maps that have the name of a category of objects, in any case.

    Args:
        pixel: Classes of label maps.
        region: Categories of objects.
    """
    objects = {name.strip().casefold() for name in region}
    return [name for name in pixel if name.strip().casefold() in objects]


def decide_stuff(split: MultitaskSplit, named: Sequence[str] = ()) -> Stuff:
    """Return which classes of the label maps are stuff.

    These are the classes in the settings, otherwise those in classes.json, otherwise all that match no category of
    objects: neither by name, nor because their pixels are inside the outlines of objects.

    Args:
        split: Training split.
        named: Classes that the settings name.
    """
    pixel = split.classes.pixel
    if named:
        return Stuff([name for name in pixel if name in named], "the settings name it")
    for data in split.pixels:
        if data.coding.stuff is not None:
            return Stuff([name for name in pixel if name in data.coding.stuff], "classes.json names it")
    same = shared_by_name(pixel, split.classes.region)
    shares = inside_outlines(split) if len(same) < len(pixel) else {}
    covered = {name: share for name, share in shares.items() if share >= INSIDE and name not in same}
    reasons = [f"{name} is a category of objects" for name in same[:3]] + ["..."][: len(same) > 3]
    reasons += [f"{100 * share:.0f} % of {name} are inside outlines of objects" for name, share in covered.items()]
    names = [name for name in pixel if name not in same and name not in covered]
    return Stuff(names, ", ".join(reasons) or "no category of objects has these names or covers these pixels")


def inside_outlines(split: MultitaskSplit) -> dict[str, float]:
    """Return the fraction of the pixels of each class that are inside outlines of objects, by class; without those that
    do not occur.

    It is measured on images with label map and the outlines of all their objects, at most `MOST_IMAGES` of them, evenly
    spaced.
    """
    whole = [index for index in range(len(split)) if split.is_panoptic(index)]
    places = np.linspace(0, len(whole) - 1, min(MOST_IMAGES, len(whole))).round().astype(int)
    inside, total = (np.zeros(len(split.classes.pixel), np.int64) for _ in range(2))
    for index in [whole[place] for place in places.tolist()]:
        number, place = split.pixel_of[index].tolist()
        objects = split.objects(index)
        try:
            labels = split.pixels[number].label_map(place)
        except BadImageError:  # training reports it
            continue
        masks = [] if objects is None or objects.masks is None else objects.masks
        if any(tuple(run["size"]) != labels.shape for run in masks):
            continue
        cover = decode(masks, *labels.shape).numpy().any(0) if masks else np.zeros(labels.shape, bool)
        known = labels < len(total)
        total += np.bincount(labels[known], minlength=len(total))
        inside += np.bincount(labels[known & cover], minlength=len(total))
    names = split.classes.pixel
    return {name: int(a) / int(b) for name, a, b in zip(names, inside, total, strict=True) if b}
