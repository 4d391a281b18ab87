"""Stratified splits of images with several labels."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

Label = TypeVar("Label", bound=Hashable)


def stratify(labels: Sequence[frozenset[Label]], val: float, seed: int) -> set[int]:
    """Return the indices of the images for val, so that it has about the same fraction of the images of each class.

    Iterative stratification (Sechidis et al., ECML 2011): starting with the rarest class, each image is assigned to the
    side that needs it most; images without classes come last. If a class has at least two images, the target is at
    least one in val and one in train.

    Args:
        labels: Classes of each image.
        val: Fraction of the images, between 0 and 1.
        seed: Seed of the order in which images are assigned.
    """
    rng = random.Random(seed)
    total = Counter(label for one in labels for label in one)
    lacking: dict[Label, list[float]] = {}
    for label, count in total.items():
        wanted = min(max(count * val, 1.0), count - 1.0) if count > 1 else 0.0
        lacking[label] = [count - wanted, wanted]
    everywhere = [len(labels) * (1 - val), len(labels) * val]
    members: dict[Label, list[int]] = defaultdict(list)
    for index, one in enumerate(labels):
        for label in one:
            members[label].append(index)
    left, dealt = dict(total), set[int]()
    chosen: set[int] = set()

    def deal(index: int, need: Sequence[float]) -> None:
        both = (need[1], everywhere[1], rng.random()) > (need[0], everywhere[0], rng.random())
        side = int(both)
        dealt.add(index)
        if side:
            chosen.add(index)
        everywhere[side] -= 1
        for label in labels[index]:
            lacking[label][side] -= 1
            left[label] -= 1

    while left := {label: count for label, count in left.items() if count}:
        rarest = min(left, key=lambda label: (left[label], str(label)))
        waiting = [index for index in members[rarest] if index not in dealt]
        rng.shuffle(waiting)
        for index in waiting:
            deal(index, lacking[rarest])
    rest = [index for index in range(len(labels)) if index not in dealt]
    rng.shuffle(rest)
    for index in rest:
        deal(index, everywhere)
    return chosen
