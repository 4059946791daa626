"""Tables for people (on a terminal) and for programs (CSV and JSON on standard output, and nothing else there)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

OutputFormat = Literal["table", "csv", "json"]


@dataclass(frozen=True)
class Column:
    """How a column is shown on a terminal."""

    title: str
    """Its heading, units included."""
    style: Literal["text", "count", "percent", "magnitude", "decimal"] = "text"
    """How its values are written; `percent` takes fractions."""

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
                return f"{value:,.2f}"
            case _:
                return str(value)


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
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns.values():
        is_text = column.style == "text"
        table.add_column(column.title, justify="left" if is_text else "right", no_wrap=is_text)
    heading = None
    for row in frame.iter_rows(named=True):
        if section is not None and row[section] != heading:
            heading = row[section]
            table.add_row(Text(str(heading), style="bold"))
        table.add_row(*(column.written(row[name]) for name, column in columns.items()))
    # A pipe has no width of its own, and rich would fold the table to 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
