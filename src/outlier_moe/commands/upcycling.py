"""`outlier-moe upcycling`: the results of each arm of the experiment dense -> MoE, and samples of its models."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import Literal, get_args

from outlier_moe.commands.tables import read_table
from outlier_moe.terminal.presentation import Column, show_frame
from outlier_moe.upcycling.summary import BOUNDARY, TABLE, boundary_for_people, for_terminal

Part = Literal["arms", "boundary", "samples"]
REMEDY = "Run: snakemake upcycle"
_SAMPLES = {name: Column(name) for name in ("pair", "seed", "arm", "phase", "prompt", "continuation")}


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "upcycling", parents=[shared], help="the experiment dense -> MoE: losses, experts, outliers and samples by arm"
    )
    parser.add_argument(
        "--part", choices=get_args(Part), help="one table alone (default: all for people, arms as csv and json)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    summary = read_table(arguments.results / "upcycle" / "summary.parquet", remedy=REMEDY, needs={**TABLE, **BOUNDARY})
    is_for_people = arguments.format == "table"
    parts = [arguments.part] if arguments.part else get_args(Part) if is_for_people else ["arms"]
    for part in parts:
        match part:
            case "arms":
                table = for_terminal(summary) if is_for_people else summary
                show_frame(table, TABLE, output_format=arguments.format, title="Arms")
            case "boundary":
                table = boundary_for_people(summary) if is_for_people else summary.select(list(BOUNDARY))
                show_frame(table, BOUNDARY, output_format=arguments.format, title="From dense to mixture of experts")
            case _:
                _show_samples(arguments)


def _show_samples(arguments: argparse.Namespace) -> None:
    samples = read_table(arguments.results / "upcycle" / "samples.parquet", remedy=REMEDY, needs=_SAMPLES)
    if arguments.format != "table":
        show_frame(samples, _SAMPLES, output_format=arguments.format, title="")
        return
    sys.stdout.write("What the trained models go on with, always the likeliest token\n")
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    for row in samples.iter_rows(named=True):
        sys.stdout.write("\n".join(_told(row, width)) + "\n")


def _told(row: dict[str, object], width: int) -> list[str]:
    head = f"{row['pair']}, seed {row['seed']}, {row['arm']}: "
    text = f"{head}[{row['prompt']}]{row['continuation']}".replace("\n", "↵")
    return textwrap.wrap(text, width, subsequent_indent="    ")
