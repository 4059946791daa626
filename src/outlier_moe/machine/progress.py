"""Progress of a stage: a bar on a terminal, occasional lines elsewhere, every step in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class SparseLines:
    """Lines on standard error if it is not a terminal; a terminal has a bar instead.

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
        """Note progress; prints a line if the last one is long enough ago."""
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


@contextmanager
def progress_bar(
    label: str, total: int, unit: str, *, n_done: int = 0, seconds_between: float = 15.0
) -> Iterator[Callable[[int, str], None]]:
    """Show how much of some work is done; yields what is called after each step, with how much it was and its figures.

    Args:
        label: What is done.
        total: How much there is to do.
        unit: Of what.
        n_done: How much is done at the start.
        seconds_between: The fewest seconds between two lines where there is no terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    lines = SparseLines(label, total, unit, n_done=n_done, seconds_between=seconds_between)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total, completed=n_done, figures="")

        def advance(more: int, figures: str) -> None:
            nonlocal n_done
            n_done += more
            progress.update(task, advance=more, figures=f"{n_done:,}/{total:,} {unit}, {figures}")
            lines.advance(more)
            log.info("%s: %d of %d %s, %s", label, n_done, total, unit, figures)

        yield advance


@contextmanager
def token_progress(model: str, n_tokens: int, *, seconds_between: float = 15.0) -> Iterator[Callable[[int], None]]:
    """Show how many of a model's tokens are done; yields what is called with the tokens of each chunk."""
    started = time.monotonic()
    n_done = 0
    with progress_bar(model, n_tokens, "tokens", seconds_between=seconds_between) as advance:

        def advance_tokens(more: int) -> None:
            nonlocal n_done
            n_done += more
            advance(more, f"{n_done / max(time.monotonic() - started, 1e-9):,.0f} tokens/s")

        yield advance_tokens
