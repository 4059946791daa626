"""What files hold, told by a digest: two that differ in their times alone are the same."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from outlier_moe.tables.whole_outputs import whole_file

log = logging.getLogger(__name__)

_WORTH_A_WORD = 4 * 2**30


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestMemo:
    """Digests of files, read again only where size or time of a file changed.

    Args:
        path: Where they are kept from one run to the next; what cannot be read or written there is done without.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[int | str]] = {}
        self._is_changed = False
        with suppress(OSError, ValueError, AttributeError):
            self._known = {str(name): list(entry) for name, entry in json.loads(path.read_text()).items()}

    def sha256_of(self, path: Path) -> str:
        """The SHA-256 of a file."""
        # The same file by whichever way it is come to.
        name = os.path.relpath(path)
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        known = self._known.get(name, [])
        if known[:2] == stamp and len(known) == 3:
            return str(known[2])
        if state.st_size > _WORTH_A_WORD:
            log.warning("reading %s once, to know it again (%.0f GB)", path, state.st_size / 1e9)
        self._known[name] = [*stamp, sha256_of(path)]
        self._is_changed = True
        return str(self._known[name][2])

    def save(self) -> None:
        """Keep them for the next run."""
        if self._is_changed:
            with suppress(OSError), whole_file(self.path) as partial:
                partial.write_text(json.dumps(self._known))
