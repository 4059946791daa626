"""How far a stage is, for a run whose output goes to a file: a line now and then, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class SparseLines:
    """Lines on the stream for errors, where that is no terminal, which has a bar instead.

    Args:
        label: What is done.
        total: How much there is to do.
        unit: Of what.
        n_done: How much is done at the start.
        seconds_between: The fewest seconds between two lines.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        n_done: int = 0,
        seconds_between: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._first = self._done = n_done
        self._seconds_between, self._clock = seconds_between, clock
        self._started = self._told = clock()

    def advance(self, more: int) -> None:
        """Note what is done; a line if the last one is long enough ago."""
        self._done += more
        now = self._clock()
        if sys.stderr.isatty() or now - self._told < self._seconds_between or not 0 < self._done < self._total:
            return
        self._told = now
        share = f"{self._label}: {self._done:,} of {self._total:,} {self._unit}"
        sys.stderr.write(f"{share}, about {self.left(now)} left\n")
        sys.stderr.flush()

    def left(self, now: float) -> str:
        """The time left, by the pace since the start."""
        done = self._done - self._first
        if done <= 0:
            return "an unknown time"
        seconds = (now - self._started) * (self._total - self._done) / done
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
