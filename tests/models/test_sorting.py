"""Sorting of integers with their places, against NumPy."""

import numpy as np
import pytest
import torch

from fishnet.models.sorting import argsort

LIMITS = np.iinfo(np.int32)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (-3, 3), (LIMITS.min, LIMITS.max)], ids=["ties", "signs", "limits"])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_places_are_those_of_a_stable_sort(low: int, high: int, count: int) -> None:
    keys = np.random.default_rng(0).integers(low, high, count, dtype=np.int32, endpoint=True)
    given = torch.from_numpy(keys.copy())
    found = argsort(given)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(given.numpy(), keys)  # not sorted in place
