"""The memory of the process: giving back what a layer leaves behind, and measuring what is held."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Names of malloc.h, and what the thresholds have risen to once a process has freed a large tensor.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
USUAL_BYTES = 32 * 2**20
KEPT_BYTES = 2**30


@cache
def _c_library() -> ctypes.CDLL | None:
    """The C library, if it is the GNU one, which keeps freed memory in its heaps."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def release_freed_memory() -> None:
    """Give freed heap memory back to the system.

    Tensors below 32 MB come from the heaps, where the weights of a layer that is gone would stay the process's.
    """
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed heap memory for later tensors, and give it back to the system at the end.

    By default the C library takes each tensor of 32 MB and more from the system, and gives back what is free at the
    heap's end: page after page is then asked for and cleared for every operation of a forward pass.
    """
    library = _c_library()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BYTES)
        library.malloc_trim(0)
