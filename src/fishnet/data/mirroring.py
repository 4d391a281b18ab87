"""Find the pairs of left and right keypoints that a horizontal flip must exchange, from their names.

In a flipped image the left eye appears at the mirrored position of the right eye, so their keypoints are exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+")
_GLUED = re.compile(r"(?P<before>[a-z]*?)(?P<side>left|right)(?P<after>[a-z]*)")
# corners and limbs in two letters: tl = top left, fr = front right, lh = left hind, rr = rear right or right rear
_SHORT = (re.compile(r"(?P<before>[tbufr])(?P<side>[lr])"), re.compile(r"(?P<side>[lr])(?P<after>[tbfhr])"))
_OPPOSITE = {"left": "right", "right": "left"}
_SIDES = {**{side: side for side in _OPPOSITE}, "l": "left", "r": "right"}


class _Reading(NamedTuple):
    """Name without its sides, and the sides: `left_eye` has the key ("", "eye") and the sides ("left",)."""

    key: tuple[str, ...]
    sides: tuple[str, ...]

    def mirrored(self) -> _Reading:
        return _Reading(self.key, tuple(_OPPOSITE[side] for side in self.sides))


def mirrored_order(names: list[str]) -> list[int]:
    """Return, for each keypoint, the index of its counterpart in a flipped image; its own index if it has none.

    Two names are a pair if they differ only in the side, in any common form: `left_eye`, `eye.L`, `L Eye`, `leftEye`,
    `LEye`, `LEFTEYE`, `tl` (top left), ... A single letter is a side only if delimited by a separator or by case, and a
    name only if it has exactly one counterpart: `lip`, `leg` and `rump` have no side.
    """
    readings = [list(_readings(name)) for name in names]
    places: dict[_Reading, list[int]] = {}
    for index, found in enumerate(readings):
        for reading in found:
            places.setdefault(reading, []).append(index)

    def partner(index: int) -> int:
        for reading in readings[index]:
            if len(places.get(reading.mirrored(), [])) == 1 == len(places[reading]):
                return places[reading.mirrored()][0]
        return index

    chosen = [partner(index) for index in range(len(names))]
    return [other if chosen[other] == index else index for index, other in enumerate(chosen)]


def mirror_note(names: list[str]) -> str | None:
    """Return a warning about keypoints that a flip may not exchange correctly; None if the names are unambiguous."""
    order = mirrored_order(names)
    alone = [name for index, name in enumerate(names) if order[index] == index and _looks_sided(name)]
    advice = "name such pairs left_... and right_..., or disable flips with --augment.flip 0"
    if alone:
        return (
            f"keypoints named left or right without a counterpart are not exchanged in flips: {_few(alone)}; {advice}"
        )
    if len(names) > 1 and order == list(range(len(names))):
        return f"no left/right pairs among the keypoint names ({_few(names)}), so flips exchange none; {advice}"
    return None


def _few(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(name)]


def _looks_sided(name: str) -> bool:
    """Return whether a name has a side; a letter before a number (`nose_l1`) may be an index and is ignored."""
    tokens = _tokens(name)
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if token.startswith(("left", "right")) or (token in _SIDES and not following.isdigit()):
            return True
    return False


def _readings(name: str) -> Iterator[_Reading]:
    """Yield the possible readings of the sides in a name: by words, by words and letters, by letters."""
    tokens = _tokens(name)
    seen = set()
    for words, letters in ((True, False), (True, True), (False, True)):
        for short in _SHORT if letters else (None,):
            parts = [_parted(token, words, letters, short) for token in tokens]
            sides = tuple(side for _, side in parts if side)
            reading = _Reading(tuple(text for texts, _ in parts for text in texts), sides)
            if sides and reading not in seen:
                seen.add(reading)
                yield reading


def _parted(token: str, words: bool, letters: bool, short: re.Pattern[str] | None) -> tuple[list[str], str]:
    """Return the parts of a token with its side replaced by an empty string, and the side, empty if there is none."""
    match = _GLUED.fullmatch(token) if words else None
    if match is None and letters:
        if token in ("l", "r"):
            return [""], _SIDES[token]
        match = short.fullmatch(token) if short else None
    if match is None:
        return [token], ""
    groups = match.groupdict(default="")
    before, after = groups.get("before"), groups.get("after")
    return [*([before] if before else []), "", *([after] if after else [])], _SIDES[groups["side"]]
