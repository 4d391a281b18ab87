"""Memory that a training on a CPU frees stays with the process, for the next step."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters of glibc's mallopt."""
_NEVER, _LARGEST_BLOCK = (1 << 31) - 1, 1 << 30
_USUAL_BLOCK = 32 << 20
"""Where glibc's own adjustment of the threshold ends."""


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Let glibc reuse the memory of large tensors instead of returning it to the system after each use.

    A step of training allocates the same tensors again and again. By default each is mapped anew, and the system clears
    it page by page, which takes 5 to 10 % of the step. The memory is returned at the end. Without glibc, or if the
    environment adjusts its allocator, nothing is changed.

    Args:
        wanted: False changes nothing.
    """
    library = ctypes.CDLL(None) if wanted and _is_adjustable() else None
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_BLOCK)
        library.malloc_trim(0)


def _is_adjustable() -> bool:
    adjusted = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not adjusted
