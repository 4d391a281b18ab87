"""Panoptic quality by panopticapi's definition, written for clarity: masks of booleans, one pair at a time."""

from __future__ import annotations

import numpy as np

from fishnet.data.panoptic import Category, PanopticMap

Pair = tuple[PanopticMap, PanopticMap]
"""Prediction and truth."""


def counts(pairs: list[Pair], category: int) -> tuple[list[float], int, int]:
    """Return the IoU of all matches, false positives and false negatives of one category."""
    matches, extra, missed = [], 0, 0
    for found, truth in pairs:
        void = truth.ids == 0
        own = [
            truth.ids == one["id"] for one in truth.segments if one["category_id"] == category and not one["iscrowd"]
        ]
        crowds = [truth.ids == one["id"] for one in truth.segments if one["category_id"] == category and one["iscrowd"]]
        guesses = [found.ids == one["id"] for one in found.segments if one["category_id"] == category]
        taken = set()
        for mask in own:
            hit = False
            for place, guess in enumerate(guesses):
                union = (guess | mask) & ~(void & guess)
                iou = (guess & mask).sum() / union.sum()
                if iou > 0.5:
                    matches.append(float(iou))
                    taken.add(place)
                    hit = True
            missed += not hit
        excused = np.logical_or.reduce([void, *crowds])
        extra += sum(
            (guess & excused).sum() / guess.sum() <= 0.5 for place, guess in enumerate(guesses) if place not in taken
        )
    return matches, extra, missed


def quality(pairs: list[Pair], categories: list[Category]) -> dict[str, float]:
    values: dict[str, list[float]] = {"pq": [], "sq": [], "rq": []}
    for category in categories:
        matches, extra, missed = counts(pairs, category["id"])
        tp = len(matches)
        if tp + extra + missed == 0:
            continue
        values["sq"].append(sum(matches) / tp if tp else 0.0)
        values["rq"].append(tp / (tp + extra / 2 + missed / 2))
        values["pq"].append(values["sq"][-1] * values["rq"][-1])
    return {name: float(np.mean(found)) if found else -1.0 for name, found in values.items()}
