"""A full disk, said in the words of this project."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from outlier_moe.errors import StudyError


@contextmanager
def disk_full_is_told(path: Path) -> Iterator[None]:
    """Say so if the disk is full, and what becomes of the run.

    Args:
        path: What is being written.

    Raises:
        StudyError: If there is no room left.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise StudyError(
                "The disk is full.",
                file=path,
                got=str(error),
                remedy="Make room and run again: the layers that are finished are kept.",
            ) from error
        raise
