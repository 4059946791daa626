"""A progress bar with loss and speed on a terminal; lines in the log always."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from outlier_moe.machine.time_left import SparseLines
from outlier_moe.terminal.figures import plain

log = logging.getLogger(__name__)


@contextmanager
def training_progress(
    label: str, *, n_steps: int, n_done: int, unit: str
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show how far a run is; yields what is to be called with each step's line of the history."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    lines = SparseLines(label, n_steps, "steps", n_done=n_done, seconds_between=60.0)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=n_steps, completed=n_done, figures="")

        def advance(row: Mapping[str, Any]) -> None:
            speed = f"{row['units_per_s']:,.0f} {unit}/s"
            progress.update(task, advance=1, figures=f"loss {row['loss']:.4f}, {speed}")
            figures = ", ".join(f"{name} {_written(value)}" for name, value in row.items() if name != "step")
            lines.advance(1)
            log.info("%s: step %d of %d: %s", label, row["step"] + 1, n_steps, figures)

        yield advance


def _written(value: object) -> str:
    return plain(value, 6) if isinstance(value, float) else str(value)
