"""`outlier-moe verify`: what others published of a model, held against its recording, row by row."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.commands.places import REGISTRY, REGISTRY_SCHEMA
from outlier_moe.config.registry import HubSource, load_registry
from outlier_moe.errors import StudyError
from outlier_moe.tables.files import read_table
from outlier_moe.tables.recording import read_recording
from outlier_moe.terminal.presentation import Column, show_frame, terminal_width

_ASK_FOR_COPY = " If it is a copy of a model of the hub, its entry can say so: `copy_of: owner/name`."

COLUMNS = {
    "verdict": Column("verdict"),
    "claim": Column("published"),
    "measured": Column("measured", "magnitude"),
    "reason": Column("why"),
    "source": Column("source"),
}


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: The options that all commands have.
    """
    parser = commands.add_parser(
        "verify",
        parents=[shared],
        help="what others published of a model: reproduced, not reproduced, not comparable",
        description="Hold a model's recording against known outlier features, super experts and published counts.",
    )
    parser.add_argument("model", metavar="MODEL", help="an id of config/models.yaml")
    parser.add_argument("--registry", type=Path, default=REGISTRY, help="default: %(default)s")
    parser.add_argument("--registry-schema", type=Path, default=REGISTRY_SCHEMA, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print a row for each published figure, and on standard error how many were reproduced.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If the model is unknown, or not recorded and filtered yet.
    """
    # The statistics take a second to load, which the other commands need not wait for.
    from outlier_moe.statistics.verification import verify

    registry = load_registry(arguments.registry, arguments.registry_schema)
    entry = registry.model(arguments.model)
    folder = arguments.results / entry.id
    recording = read_recording(folder / "outliers")
    table = verify(
        recording,
        _systematic(folder / "systematic.parquet"),
        model=entry.id,
        experts=recording.experts(),
        revision="main" if entry.copy_of or not isinstance(entry.source, HubSource) else entry.source.revision,
        copy_of=entry.copy_of,
        published_id=registry.published_id(entry),
    )
    shown = table.with_columns(pl.col("verdict", "reference", "tap").cast(pl.String))
    if table.is_empty() and arguments.format == "table":
        known = "" if entry.copy_of or isinstance(entry.source, HubSource) else _ASK_FOR_COPY
        sys.stderr.write(f"Nothing is published of {entry.id} that this project knows of.{known}\n")
        return
    if arguments.format == "table":
        sys.stdout.write("\n".join(map(_told, shown.iter_rows(named=True))) + "\n")
    else:
        show_frame(shown, COLUMNS, output_format=arguments.format, title=entry.id)
    sys.stderr.write(_counts(shown))


def _counts(rows: pl.DataFrame) -> str:
    """How many published figures were reproduced, without this project's own earlier measurements."""
    from outlier_moe.statistics.published import VERDICTS, is_own

    lines = []
    for name, chosen in (("published by others", rows.filter(~is_own())), ("measured here", rows.filter(is_own()))):
        if len(chosen):
            counts = dict(chosen["verdict"].value_counts().iter_rows())
            told = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
            lines.append(textwrap.fill(f"{name}: {told}.", terminal_width(of_errors=True)) + "\n")
    return "".join(lines)


def _told(row: dict[str, Any]) -> str:
    """A row as a paragraph: its reason is too long for a column."""
    width, indent = terminal_width(), 16 if terminal_width() >= 60 else 2
    text = f"{row['claim']} ({row['source']}): {row['reason']}"
    lines = textwrap.wrap(text, width, initial_indent=f"{row['verdict']:<16}", subsequent_indent=" " * indent)
    return "\n".join(lines)


def _systematic(path: Path) -> pl.DataFrame:
    try:
        return read_table(path)
    except FileNotFoundError as error:
        raise StudyError("The model is not filtered yet.", file=path, remedy=f"Run: snakemake {path}") from error
