"""Ordering of samples such that every step has enough labeled samples of every level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quotas:
    """Minimum fraction of the samples of each step that are labeled for a level.

    Attributes:
        known: Whether each sample is labeled on each level, bool (N, L).
        shares: Minimum fraction of the samples of a step for each level, float (L,); 0 means no minimum. Levels
            without labeled samples are ignored.
    """

    known: np.ndarray
    shares: np.ndarray

    def needs(self, batch_size: int) -> np.ndarray:
        """Return the least number of samples per step for each level, int64 (L,).

        Fractional numbers of samples are rounded up.
        """
        wanted = np.ceil(self.shares * batch_size - 1e-9).astype(np.int64)
        return np.where(self.known.any(0), wanted.clip(0, batch_size), 0)


def spread(order: np.ndarray, known: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the samples in an order in which each combination of levels is spaced evenly.

    Args:
        order: Samples in random order; index modulo N is the row of `known`.
        known: Whether each sample is labeled on each level, bool (N, L).
        generator: Chooses where the samples of each combination begin.
    """
    codes = (known @ (1 << np.arange(known.shape[1])))[order % len(known)]
    places = np.zeros(len(order))
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        places[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return order[np.argsort(places, kind="stable")]


def fill(order: np.ndarray, batch_size: int, quotas: Quotas, generator: np.random.Generator) -> np.ndarray:
    """Return an order of the same length whose every whole step meets the quotas.

    In a step that lacks samples of a level, samples that no quota needs are replaced by others of that level, which are
    taken in turn; so samples of a rare level are shown more often, and some of the others not in this epoch. The quotas
    are met wherever `needs` adds up to no more than a step, and in many other cases.

    Args:
        order: Samples; copy c of sample i is i + c x N.
        batch_size: Samples per step.
        quotas: Minimum fraction of each level.
        generator: Shuffles the samples that are added.
    """
    known, needs = quotas.known, quotas.needs(batch_size)
    order, samples = order.copy(), len(known)
    copies = np.bincount(order % samples, minlength=samples)
    pools = {
        level: generator.permutation(np.flatnonzero(known[:, level])).tolist()
        for level in np.flatnonzero(needs).tolist()
    }
    for first in range(0, len(order) - batch_size + 1, batch_size):
        step = order[first : first + batch_size]  # a view
        for level, pool in pools.items():
            while (known[step % samples, level].sum()) < needs[level]:
                place = _spare(known[step % samples], needs)
                if place is None:
                    break
                chosen = _next(pool, set((step % samples).tolist()))
                step[place] = chosen + samples * copies[chosen]
                copies[chosen] += 1
        order[first : first + batch_size] = spread(step, known, generator)
    return order


def _spare(known: np.ndarray, needs: np.ndarray) -> int | None:
    """Return the index of a sample in a step that can be removed without missing a quota; None if there is none.

    Args:
        known: Whether each sample of the step is labeled on each level, bool (B, L).
        needs: Minimum number of samples of each level, int64 (L,).
    """
    scarce = known.sum(0) <= needs
    free = np.flatnonzero(~(known & scarce).any(1))
    return int(free[np.argmin(known[free].sum(1))]) if len(free) else None


def _next(pool: list[int], present: set[int]) -> int:
    """Return the next sample of a pool that is not in the step already, if there is one, and move it to the end."""
    place = next((place for place, sample in enumerate(pool) if sample not in present), 0)
    pool.append(pool.pop(place))
    return pool[-1]
