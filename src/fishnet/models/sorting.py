"""Sorting of many integers, with their places."""

from __future__ import annotations

import torch
from torch import Tensor


def argsort(keys: Tensor) -> Tensor:
    """Return the places of integers in ascending order, int64 (P,); places of equal integers keep their order.

    On CPUs NumPy sorts integers with the vector instructions of the processor, up to ten times as fast as PyTorch sorts
    them with their places. Each integer carries its place in the lower half of an int64.

    Args:
        keys: Integers (P,), int32; P is below 2^31.
    """
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    pairs = keys.long().bitwise_left_shift_(32).add_(torch.arange(len(keys)))
    pairs.numpy().sort()
    return pairs.bitwise_and_(0xFFFFFFFF)
