"""Settings of glibc's memory allocator for training on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from fishnet.models.config import Memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameter numbers of glibc's mallopt."""
_NEVER, _ANY_BLOCK = (1 << 31) - 1, 1 << 30
_USUAL_BLOCK = 32 << 20
"""Maximum of glibc's dynamic mmap threshold."""
_LARGE_BLOCK = 16 << 20


@contextmanager
def allocation_for(memory: Memory, wanted: bool = True) -> Iterator[None]:
    """Configure how glibc reuses the memory of large tensors during training on a CPU.

    Every step allocates the same tensors. By default each large one is mapped and cleared by the kernel again, which
    takes 5 to 10 % of the step. In the modes `fast` and `balanced`, the process therefore keeps freed memory until the
    end of the context. In `saver`, tensors of 16 MiB and more are returned immediately, since fragmentation would
    otherwise double the memory. Nothing is changed without glibc, or if environment variables configure the allocator.

    Args:
        memory: Memory mode of the training.
        wanted: Whether to change anything.
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
