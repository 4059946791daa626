"""The memory of the process: giving back what a layer leaves behind, and measuring what is held."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

STATUS = Path("/proc/self/status")


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


def anonymous_bytes() -> int | None:
    """Memory of the process that is no file's; None where the system does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)
