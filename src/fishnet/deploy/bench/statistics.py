"""Medians, quantiles and exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return quantile(values, 0.5)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated linearly; `share` is between 0 and 1."""
    return float(np.quantile(np.asarray(values, dtype=float), share))


def spread(values: Sequence[float]) -> float:
    """Return half the interquartile range, relative to the median."""
    return (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / median(values)


class Power(NamedTuple):
    """y = factor x^exponent."""

    exponent: float
    factor: float
    fit: float
    """Coefficient of determination (R squared) in log y."""


def fit_power(x: Sequence[float], y: Sequence[float]) -> Power | None:
    """Fit a power law by least squares of the logarithms; None with fewer than two different x or with a value that is
    not positive."""
    if len(set(x)) < 2 or min([*x, *y]) <= 0:
        return None
    u, v = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    slope, offset = np.polyfit(u, v, 1)
    total = float(((v - v.mean()) ** 2).sum())
    rest = float(((v - slope * u - offset) ** 2).sum())
    return Power(float(slope), math.exp(offset), 1.0 if total == 0 else 1 - rest / total)
