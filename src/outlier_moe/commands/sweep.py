"""`outlier-moe sweep`: the summary of a sweep, a row for each scale and optimiser."""

from __future__ import annotations

import argparse

from outlier_moe.commands.tables import read_table
from outlier_moe.scale_sweep.terminal_table import show_summary


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sweep", parents=[shared], help="the sweeps over optimisers and scales: losses, ranks and outliers"
    )
    parser.add_argument("name", nargs="?", choices=["scale_sweep", "lm_scale_sweep"], default="scale_sweep")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    path = arguments.results / arguments.name / "summary.parquet"
    table = read_table(path, remedy=f"Run: snakemake {arguments.name}")
    show_summary(table, output_format=arguments.format, title=str(path))
