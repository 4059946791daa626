"""Tables for people (on a terminal) and for programs (CSV and JSON on standard output, and nothing else there)."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import polars as pl
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 120
MIN_WIDTH = 20
# Blanks between two columns.
GAP = 3
# Characters to which a column may be folded whose values are words.
FOLDED = 16

Rows = Sequence[Mapping[str, str]]
OutputFormat = Literal["table", "csv", "json"]


@dataclass(frozen=True)
class Column:
    """How a column is shown on a terminal."""

    title: str
    """Its heading, units included."""
    style: Literal["text", "count", "percent", "magnitude", "decimal"] = "text"
    """How its values are written; `percent` takes fractions."""
    spare: int = 0
    """How soon it is left out where a terminal is narrow: the largest first, of equal ones the rightmost."""
    folds: bool = False
    """Whether its values may take several lines: words and paths may, figures may not."""

    def written(self, value: object) -> str:
        """A value as the terminal shows it."""
        if value is None:
            return "-"
        if isinstance(value, str):
            # Written already, with a mark or an interval.
            return value
        match self.style:
            case "count":
                return f"{value:,}"
            case "percent":
                return f"{100 * value:.1f}"  # type: ignore[operator]
            case "magnitude":
                return f"{value:,.1f}"
            case "decimal":
                return _decimal(value)  # type: ignore[arg-type]
            case _:
                return str(value)


def _decimal(value: float | int) -> str:
    """Two places, or two digits of what would be 0.00: the parameters of a small model, in billions."""
    return f"{Decimal(f'{value:.2g}'):f}" if 0 < abs(value) < 0.01 else f"{value:,.2f}"


def show_frame(
    frame: pl.DataFrame,
    columns: Mapping[str, Column],
    *,
    output_format: OutputFormat,
    title: str,
    section: str | None = None,
) -> None:
    """Print a table: chosen columns for a person, all of them for a program.

    Args:
        frame: The table.
        columns: The columns that a terminal shows, in that order.
        output_format: For whom.
        title: The terminal table's caption.
        section: A column whose values become headings, each above its rows.
    """
    if output_format == "csv":
        sys.stdout.write(frame.write_csv())
        return
    if output_format == "json":
        sys.stdout.write(frame.write_json() + "\n")
        return
    width = terminal_width()
    cells = [
        {name: column.written(row[name]) for name, column in columns.items()} for row in frame.iter_rows(named=True)
    ]
    headings = None if section is None else [str(value) for value in frame[section]]
    widths, left_out = _chosen_widths(columns, cells, headings or (), width)
    Console(width=width).print(_table({name: columns[name] for name in widths}, widths, cells, headings, title))
    if left_out:
        titles = [flat_title(columns[name]) or name for name in columns if name in left_out]
        show_note(f"Left out for want of room: {', '.join(titles)}. --format csv has all.")


def show_note(*notes: str) -> None:
    """Print what is said beneath a table, in lines that end with a word; one longer than a line stays whole.

    Args:
        notes: Paragraphs, each from a line of its own on.
    """
    for note in notes:
        words = " ".join(note.split())
        width = max(min(terminal_width(), PIPE_WIDTH), MIN_WIDTH)
        sys.stdout.write(textwrap.fill(words, width, break_long_words=False, break_on_hyphens=False) + "\n")


def terminal_width(*, of_errors: bool = False) -> int:
    """Characters of a line: a pipe has no width of its own, and would get 80.

    Args:
        of_errors: Whether of the stream for errors, and not of standard output.
    """
    stream = sys.stderr if of_errors else sys.stdout
    return Console(file=stream).width if stream.isatty() else PIPE_WIDTH


def least_wanted(columns: Mapping[str, Column]) -> str:
    """The column that is left out first; never the first, which says what a row is of."""
    names = list(columns)[1:]
    return max(enumerate(names), key=lambda place: (columns[place[1]].spare, place[0]))[1]


def flat_title(column: Column) -> str:
    """A heading in one line."""
    return " ".join(column.title.replace("-\n", "").split())


def _chosen_widths(
    columns: Mapping[str, Column], cells: Rows, headings: Sequence[str], room: int
) -> tuple[dict[str, int], list[str]]:
    """The widths of the columns that there is room for, and the columns that are left out."""
    own = {name: _own_width(name, column, cells) for name, column in columns.items()}
    first = next(iter(own))
    own[first] = max([own[first], *map(cell_len, headings)])
    least = {name: min(own[name], FOLDED) if column.folds else own[name] for name, column in columns.items()}
    left_out: list[str] = []
    while len(least) > 1 and sum(least.values()) + GAP * (len(least) - 1) > room:
        left_out.append(least_wanted({name: columns[name] for name in least}))
        del least[left_out[-1]]
    # What is left goes to the columns that would be folded.
    left = room - sum(least.values()) - GAP * (len(least) - 1)
    for name in least:
        more = max(0, min(own[name] - least[name], left))
        least[name] += more
        left -= more
    return {name: min(width, room) for name, width in least.items()}, left_out


def _own_width(name: str, column: Column, cells: Rows) -> int:
    longest = max((cell_len(row[name]) for row in cells), default=0)
    return max(longest, *map(cell_len, column.title.split("\n")))


def _table(
    columns: Mapping[str, Column],
    widths: Mapping[str, int],
    cells: Rows,
    headings: Sequence[str] | None,
    title: str,
) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, column in columns.items():
        justify = "left" if column.style == "text" else "right"
        # Words are broken where they must be, figures have the room they take.
        table.add_column(column.title, justify=justify, overflow="fold", width=widths[name])
    last = None
    for index, row in enumerate(cells):
        if headings is not None and headings[index] != last:
            last = headings[index]
            table.add_row(Text(last, style="bold"))
        table.add_row(*(Text(row[name]) for name in columns))
    return table
