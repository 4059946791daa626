"""`outlier-moe upcycling`: what each arm of the experiment dense -> MoE came to."""

from __future__ import annotations

import argparse

from outlier_moe.commands.tables import read_table
from outlier_moe.terminal.presentation import show_frame
from outlier_moe.upcycling.summary import TABLE, for_terminal


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "upcycling", parents=[shared], help="the experiment dense -> MoE: losses, experts and outliers by arm"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    path = arguments.results / "upcycle" / "summary.parquet"
    table = read_table(path, remedy="Run: snakemake upcycle")
    if arguments.format == "table":
        table = for_terminal(table)
    show_frame(table, TABLE, output_format=arguments.format, title=str(path))
