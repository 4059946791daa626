"""What a disk refuses, said in the words of this project: each library has an error of its own for it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from outlier_moe.errors import StudyError

_AGAIN = "and run again: what is finished is kept."
_KINDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("The disk is full.", f"Make room {_AGAIN}"),
    errno.EDQUOT: ("The quota of this disk is used up.", f"Make room, or ask for more, {_AGAIN}"),
    errno.EFBIG: ("A file became larger than this process may write.", f"Raise the limit (ulimit -f) {_AGAIN}"),
    errno.EROFS: ("A folder is read-only.", f"Mount it so that it can be written to, {_AGAIN}"),
    errno.EACCES: ("A file or folder is closed to this user.", f"Change its owner or mode {_AGAIN}"),
    errno.EPERM: ("A file or folder is closed to this user.", f"Change its owner or mode {_AGAIN}"),
    errno.EIO: ("The disk reports an error.", f"Check the disk, or take another, {_AGAIN}"),
    errno.ESTALE: ("A network disk has gone away.", f"Mount it anew {_AGAIN}"),
    errno.ENOTCONN: ("A network disk has gone away.", f"Mount it anew {_AGAIN}"),
    errno.ENOTDIR: ("A file stands where a folder should be.", "Move it away and run again."),
    errno.EISDIR: ("A folder stands where a file should be.", "Move it away and run again."),
    errno.EEXIST: ("A folder cannot be made: something of its name is there.", "Move it away and run again."),
    errno.ELOOP: ("Links lead in a circle.", "Make the link anew and run again."),
    errno.ENAMETOOLONG: ("A name is too long for this disk.", "Take a shorter one and run again."),
    errno.EMFILE: ("Too many files are open.", f"Raise the limit (ulimit -n 4096) {_AGAIN}"),
    errno.ENFILE: ("Too many files are open.", f"Close other programs {_AGAIN}"),
}
# Libraries that are no Python put the system's number, or its words alone, into their message.
_NUMBER = re.compile(r"(?:os error |errno[ :]+)(\d+)", re.IGNORECASE)
_WORDS = {os.strerror(number).lower(): number for number in _KINDS}


def disk_trouble(error: BaseException, place: Path) -> StudyError | None:
    """What the disk refused, if that is what an error comes from; None for any other error.

    Args:
        error: What was raised.
        place: What was being written, for errors that do not name it.
    """
    for cause in _causes(error):
        if isinstance(cause, StudyError):
            return None
        if (number := _number(cause)) in _KINDS:
            problem, remedy = _KINDS[number]
            named = getattr(cause, "filename", None)
            file = Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else place
            said = " ".join(str(cause).split())
            return StudyError(problem, file=file, got=f"{said}; {free_space(file)}", remedy=remedy)
    return None


def free_space(place: Path) -> str:
    """How much room the disk of a file or folder has left, in words."""
    try:
        folder = next(path for path in (place, *place.absolute().parents) if path.exists())
        return f"{shutil.disk_usage(folder).free / 1e9:.3g} GB are free at {folder}"
    except (OSError, StopIteration):
        return "how much is free cannot be told"


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (nearer := found[-1].__cause__ or found[-1].__context__) is not None and nearer not in found:
        found.append(nearer)
    return found


def _number(error: BaseException) -> int | None:
    """The system's number of an error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = str(error)
    if match := _NUMBER.search(said):
        return int(match[1])
    return next((number for words, number in _WORDS.items() if words in said.lower()), None)
