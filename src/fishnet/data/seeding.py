"""Random draws of data loading as a function of (seed, epoch, index), independent of worker, process and order."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch.utils.data import get_worker_info


def sample_words(seed: int, epoch: int, index: int) -> tuple[int, int, int]:
    """Return three independent seeds of 64, 32 and 64 bits, equal on every platform and Python version.

    They are words of a BLAKE2b hash of the three numbers, so the seeds of neighboring indices are unrelated.
    """
    limit = (1 << 64) - 1
    packed = struct.pack("<QQQ", seed & limit, epoch & limit, index & limit)
    return struct.unpack("<QIQ", hashlib.blake2b(packed, digest_size=20).digest())


# Copying NumPy's state takes 0.1 ms, too slow for small images, so samples draw from a separate generator.
_NUMPY_GENERATOR = np.random.MT19937(0)


@contextmanager
def sample_seed(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seed the global generators of `random`, NumPy and torch (CPU) for one sample; must not be nested.

    The caller's states are restored afterwards, except for the spare value that `np.random.randn` keeps after an odd
    number of draws. In worker processes of a loader nothing else draws from them, so they are not restored there.
    """
    python_seed, numpy_seed, torch_seed = sample_words(seed, epoch, index)
    if get_worker_info() is not None:
        _seed_all(python_seed, numpy_seed, torch_seed)
        yield
        return
    generator = torch.default_generator
    states = random.getstate(), get_bit_generator(), generator.get_state()
    set_bit_generator(_NUMPY_GENERATOR)
    try:
        _seed_all(python_seed, numpy_seed, torch_seed)
        yield
    finally:
        random.setstate(states[0])
        set_bit_generator(states[1])
        generator.set_state(states[2])


def _seed_all(python_seed: int, numpy_seed: int, torch_seed: int) -> None:
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    # torch.manual_seed would also seed every GPU and so change dropout in the training process.
    torch.default_generator.manual_seed(torch_seed)
