"""What becomes of memory that a training on a CPU frees."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from fishnet.models.config import Memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters of glibc's mallopt."""
_NEVER, _ANY_BLOCK = (1 << 31) - 1, 1 << 30
_USUAL_BLOCK = 32 << 20
"""Where glibc's own adjustment of the threshold ends."""
_LARGE_BLOCK = 16 << 20


@contextmanager
def allocation_for(memory: Memory, wanted: bool = True) -> Iterator[None]:
    """Let glibc treat the memory of large tensors as a training on a CPU needs it.

    A step allocates the same tensors again and again. By default each large one is mapped anew, and the system clears
    it page by page, which takes 5 to 10 % of the step. In the modes `fast` and `balanced` freed memory stays with the
    process instead, and is returned at the end. With `saver` tensors of 16 MiB and more are returned at once, since
    holes between tensors of different sizes would otherwise take twice the memory. Without glibc, or if the environment
    adjusts the allocator, nothing is changed.

    Args:
        memory: Memory mode of the training.
        wanted: False changes nothing.
    """
    library = ctypes.CDLL(None) if wanted and _is_adjustable() else None
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK if memory == "saver" else _ANY_BLOCK)
    library.mallopt(_TRIM_THRESHOLD, _LARGE_BLOCK if memory == "saver" else _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_BLOCK)
        library.malloc_trim(0)


def _is_adjustable() -> bool:
    adjusted = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not adjusted
