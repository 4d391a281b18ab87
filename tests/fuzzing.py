"""Structural mutations of small JSON-like documents, seeded."""

from __future__ import annotations

import copy
import random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, -0.5, 255, 65536, 10**9, 2**31, 2**32, 2**63, -(2**63) - 1, 2**70, 10**400, 1e308,
    -1e308, 1e-300, float("inf"), float("-inf"), float("nan"), "", "x", "1", "1e400", "b'\\x00'", "\x00", "\ud800",
    "\n", "ä", "0" * 5000, "../x", "/", [], {}, [[]], [{}], [None], [[1, 2], [3]], [True] * 4, [0] * 4, [0.0] * 6,
    [1e300] * 6, [-1] * 3, ["a"] * 6, [2**70] * 4, [float("nan")] * 6, list(range(5000)), [[0, 0, 9, 0, 9, 9]] * 500,
    {"size": [1, 1], "counts": [1]}, {"size": None, "counts": None}, {"id": 1},
)  # fmt: skip
_DEEP: list[Any] = []
for _ in range(60):
    _DEEP = [_DEEP]


def mutate(document: Any, rng: random.Random) -> Any:
    """Return a copy of the document with one to three nodes replaced, deleted, doubled, moved or given another type."""
    mutated = {"root": copy.deepcopy(document)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [place for place in _places(mutated) if place[0] is not mutated or rng.random() < 0.1]
        if not places:
            break
        container, key = rng.choice(places)
        action = rng.choice(("replace", "replace", "replace", "retype", "retype", "delete", "double", "move"))
        if action == "replace":
            container[key] = copy.deepcopy(rng.choice((*NASTY, _DEEP)))
        elif action == "retype":
            container[key] = _retyped(container[key], rng)
        elif action == "move":
            other, place = rng.choice(places)
            container[key] = copy.deepcopy(other[place])
        elif action == "delete" and container is not mutated:
            del container[key]
        elif action == "double" and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
    return mutated["root"]


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every node below a node."""
    keys: Any = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found = []
    for key in keys:
        found += [(node, key), *_places(node[key])]
    return found


def _retyped(value: Any, rng: random.Random) -> Any:
    """Return something near a value, of another type or size."""
    if isinstance(value, bool) or value is None:
        return rng.choice(("true", [value], 7))
    if isinstance(value, int | float):
        return rng.choice(
            (str(value), float(value), -value, value + 1, value * 10**6, value / 3, [value], {"v": value})
        )
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        other = value[:cut] + chr(rng.choice((rng.randrange(48, 112), rng.randrange(1, 300)))) + value[cut + 1 :]
        return rng.choice((value[:cut], value * 2, other, other, [value], list(value), {"v": value}, 5))
    if isinstance(value, list):
        return rng.choice((value[:-1], value * 2, [value], dict(enumerate(value)), str(value)[:200], value[::-1]))
    return rng.choice((list(value.values()), list(value), [value], str(value)[:200]))
