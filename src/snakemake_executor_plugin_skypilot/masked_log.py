"""Texts that show no secret and no colours: a node's log, and what is said of it."""

from __future__ import annotations

import fcntl
import io
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from snakemake_executor_plugin_skypilot.errors import CONTROL

# A secret of fewer letters would blacken half of a log.
SHORTEST_SECRET = 4


class Secrets:
    """Values that nobody may read in a text.

    Args:
        values: They, whole. Of one with several lines, a key say, each line is one: a log is written line by line.
    """

    def __init__(self, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.splitlines()}
        self._hidden = sorted((line for line in lines if len(line) >= SHORTEST_SECRET), key=len, reverse=True)

    def masked(self, text: str) -> str:
        """A text without colours and the values of secrets."""
        text = CONTROL.sub("", text)
        for hidden in self._hidden:
            text = text.replace(hidden, "***")
        return text


class MaskedLog(io.TextIOBase):
    """A text file for what a node says, which leaves out the values of secrets and what only a terminal understands.

    Until it is closed it is locked, so that others can tell whether more is to come.

    Args:
        path: The file; what is there already stays.
        secrets: Values that must not be in it.
        n_last: How many lines are kept for `last_lines`.
    """

    def __init__(self, path: Path, secrets: Iterable[str], *, n_last: int = 40) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.name = str(path)
        self._file = path.open("a", encoding="utf-8", errors="replace")
        with suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._secrets = Secrets(secrets)
        self._last: deque[str] = deque(maxlen=n_last)
        self._unfinished = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Add text; a line appears when it is whole, as a secret may come in two pieces."""
        *lines, unfinished = (self._unfinished + text).split("\n")
        self._unfinished = _last_written(unfinished)
        for line in lines:
            self._add(_last_written(line))
        return len(text)

    def masked(self, text: str) -> str:
        """A text without colours and the values of secrets."""
        return self._secrets.masked(text)

    def _add(self, line: str) -> None:
        line = self.masked(line)
        self._file.write(line + "\n")
        self._file.flush()
        if line.strip():
            self._last.append(line)

    def flush(self) -> None:
        """Whole lines are in the file already."""

    @property
    def last_lines(self) -> list[str]:
        """The last lines that are not empty."""
        return list(self._last)

    def close(self) -> None:
        """Write what is unfinished, and close the file."""
        if not self.closed:
            if self._unfinished:
                self._add(self._unfinished)
            self._file.close()
        super().close()


def _last_written(line: str) -> str:
    """A line without what a progress bar wrote over in it."""
    said = line.rstrip("\r")
    return said[said.rfind("\r") + 1 :] + line[len(said) :]
