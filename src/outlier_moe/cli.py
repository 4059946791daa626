"""The command `outlier-moe`. Results go to standard output, remarks to standard error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import polars as pl

from outlier_moe import __version__
from outlier_moe.commands import (
    check,
    compare,
    completion,
    cost,
    count_params,
    models,
    nodes,
    plan,
    record,
    sweep,
    top,
    upcycling,
    verify,
)
from outlier_moe.commands.definitions import tell_definitions, tell_differences, with_definitions
from outlier_moe.commands.places import REGISTRY, REGISTRY_SCHEMA, RESULTS
from outlier_moe.commands.tables import read_table, tell_degenerate, tell_nonfinite, with_marks
from outlier_moe.errors import StudyError
from outlier_moe.machine.disk_trouble import disk_trouble
from outlier_moe.statistics.degenerate import with_degenerate
from outlier_moe.terminal.arguments import Parser
from outlier_moe.terminal.presentation import Column, OutputFormat, show_frame

_COMPARISON = {
    "model": Column("preset\n  model", folds=True),
    "total_params_b": Column("params\n(B)", "decimal"),
    "perplexity": Column("per-\nplexity", "decimal"),
    "n_systematic": Column("outlier\nfeatures", "count"),
    "n_without_first": Column("without\nfirst token", "count", spare=1),
    "n_pairs": Column("pairs with\na sequence", "count", spare=2),
    "layer_fraction_mean": Column("layers\n%", "percent"),
    "position_fraction_mean": Column("positions\n%", "percent"),
    "peak_largest": Column("largest\n|x|", "magnitude"),
}


def _show(arguments: argparse.Namespace) -> None:
    path = arguments.results / "comparison" / "models.parquet"
    needs = [name for name in (*_COMPARISON, "preset", "first_token", "d_model_share") if name != "n_without_first"]
    table = with_degenerate(read_table(path, remedy="Run snakemake (or make demo) first.", needs=needs))
    presets = table["preset"].unique(maintain_order=True).to_list()
    others = [arguments.results / model / "systematic.parquet" for model in table["model"].unique(maintain_order=True)]
    table = with_marks(_for_people(table)) if arguments.format == "table" else with_definitions(table, path)
    show_frame(table, _COMPARISON, output_format=arguments.format, title=str(path), section="preset")
    if arguments.format == "table":
        tell_definitions(path, presets)
        tell_degenerate(table)
        tell_nonfinite(table)
        report = arguments.results / "report" / "index.html"
        if report.is_file():
            sys.stderr.write(f"The report: {report}\n")
    tell_differences(path, others)


def _for_people(table: pl.DataFrame) -> pl.DataFrame:
    """One row per preset and model, the presets in the study's order."""
    key = ["model", "preset"]
    without_first = table.filter(first_token="excluded").select(*key, n_without_first="n_systematic")
    presets = pl.Enum(table["preset"].unique(maintain_order=True))
    return (
        table.filter(first_token="included")
        .join(without_first, on=key, validate="1:1")
        .sort(pl.col("preset").cast(presets), maintain_order=True)
        .with_columns(model="  " + pl.col("model"))
    )


def _parser() -> Parser:
    parser = Parser(prog="outlier-moe", description="Look at the results of the outlier_moe pipeline.")
    parser.add_argument("--version", action="version", version=__version__)
    shared = Parser(add_help=False)
    shared.add_argument("--format", choices=get_args(OutputFormat), default="table", help="default: %(default)s")
    shared.add_argument("--results", type=Path, default=RESULTS, help="the pipeline's results (default: ./results)")
    registered = Parser(add_help=False)
    registered.add_argument("--registry", type=Path, default=REGISTRY, help="default: %(default)s")
    registered.add_argument("--registry-schema", type=Path, default=REGISTRY_SCHEMA, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", parents=[shared], help="all models side by side, by every preset")
    show.set_defaults(run=_show)

    top.add_parser(commands, shared, registered)
    models.add_parser(commands, shared, registered)
    check.add_parser(commands, shared, registered)
    record.add_parser(commands)
    compare.add_parser(commands)
    verify.add_parser(commands, shared)
    plan.add_parser(commands)
    cost.add_parser(commands)
    nodes.add_parsers(commands)
    count_params.add_parser(commands, shared)
    sweep.add_parser(commands, shared)
    upcycling.add_parser(commands, shared)
    completion.add_parser(commands, parser)
    return parser


def _told(error: StudyError) -> int:
    sys.stderr.write(f"{error}\n")
    return 1


def _other_version(error: Exception) -> StudyError:
    return StudyError(
        "A table does not have what this version of outlier-moe looks for.",
        expected=f"results that version {__version__} has made",
        got=str(error).splitlines()[0],
        remedy="Run snakemake again, which makes the tables of this version.",
    )


def _cannot(error: OSError) -> StudyError:
    return StudyError(
        "A file or folder cannot be used.",
        file=error.filename,
        got=error.strerror or str(error),
        remedy="See that it is there, and that it may be read and written.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Args:
        argv: The arguments, those of the process by default.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        # Here and not at the interpreter's end, where a full disk is a traceback.
        sys.stdout.flush()
    except StudyError as error:
        return _told(error)
    except pl.exceptions.PolarsError as error:
        return _told(_other_version(error))
    except BrokenPipeError:
        # The reader (head, say) has enough.
        _drop_output()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        if error.filename is None:
            _drop_output()
            remedy = "make room where it goes, or send it elsewhere"
            sys.stderr.write(f"Standard output cannot be written to: {error.strerror or error}; remedy: {remedy}.\n")
            return 1
        return _told(disk_trouble(error, Path("standard output")) or _cannot(error))
    return 0


def _drop_output() -> None:
    """Discard what standard output did not take; otherwise the interpreter reports it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
