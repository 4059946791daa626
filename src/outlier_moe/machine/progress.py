"""A progress bar with tokens per second on a terminal, lines in a log elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from outlier_moe.machine.time_left import SparseLines

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0
"""So often a run whose output goes to a file says how far it is."""


class TokenRate(ProgressColumn):
    """Tokens per second so far."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} tokens/s" if rate else "")


@contextmanager
def token_progress(model: str, n_tokens: int) -> Iterator[Callable[[int], None]]:
    """Show how many of a model's tokens are done; yields what is to be called with the tokens of each chunk."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TokenRate(), TimeRemainingColumn())
    started = time.monotonic()
    done = 0
    lines = SparseLines(model, n_tokens, "tokens", seconds_between=SECONDS_BETWEEN_LINES)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(model, total=n_tokens)

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            progress.advance(task, tokens)
            rate = done / max(time.monotonic() - started, 1e-9)
            lines.advance(tokens)
            log.info("%s: %d of %d tokens, %.0f tokens/s", model, done, n_tokens, rate)

        yield advance
