"""Libraries without the optional ones that they take in for what is not used here, so that a stage starts sooner."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*optional: str) -> Iterator[None]:
    """Let libraries look as if they were not installed, to what is imported meanwhile; those already there stay.

    Args:
        optional: Their names. What is imported must work without them.
    """
    hidden = [name for name in optional if name not in sys.modules]
    # Python's own way of saying that a module cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
