"""Alternate signal stack of a thread."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Restore the signal stack of the calling thread at the end of the context.

    OpenVINO sets its own signal stack when it compiles a model, and frees it with the model. The next signal that
    Python handles, such as the end of a data loader's worker, would then cause a segmentation fault. Only needed on
    Linux.
    """
    library = ctypes.CDLL(None) if platform.system() == "Linux" else None
    before = _Stack()
    if library is None or library.sigaltstack(None, ctypes.byref(before)):
        yield
        return
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
