"""A disk that is full, or too small to begin, said in the words of this project."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outlier_moe.errors import StudyError
from outlier_moe.machine.disk_trouble import disk_trouble


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Say so if a disk is full or closed; each library has an error of its own for it.

    Args:
        path: What is being written.

    Raises:
        StudyError: If it cannot be.
    """
    try:
        yield
    except Exception as error:
        if (told := disk_trouble(error, path)) is not None:
            raise told from error
        raise


def free_bytes(place: Path) -> int:
    """What the disk of a folder, which need not be there yet, has room for."""
    folder = next(path for path in (place, *place.absolute().parents) if path.exists())
    return shutil.disk_usage(folder).free


def check_room(place: Path, n_bytes: int, *, remedy: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        place: The folder to write into, which need not be there yet.
        n_bytes: What is to be written there.
        remedy: What to do about it.

    Raises:
        StudyError: If there is less room.
    """
    if n_bytes > (free := free_bytes(place)):
        raise StudyError(
            "The disk has no room for the checkpoint.",
            file=place,
            expected=f"{n_bytes / 1e9:.1f} GB free",
            got=f"{free / 1e9:.1f} GB",
            remedy=remedy,
        )
