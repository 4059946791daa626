"""`outlier-moe nodes` and `outlier-moe logs`: the rented nodes of this folder's runs, and what their jobs say."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import polars as pl

from outlier_moe.commands.local_logs import LOGS, local_logs, print_newest
from outlier_moe.commands.skypilot import import_skypilot
from outlier_moe.errors import StudyError
from outlier_moe.terminal.presentation import Column, OutputFormat, show_frame, show_note

if TYPE_CHECKING:
    from snakemake_executor_plugin_skypilot.watching import RentedNode

_COLUMNS = {
    "node": Column("node", folds=True),
    "job": Column("job", folds=True),
    "dollars": Column("  $", "decimal"),
    "since": Column("since"),
    "idle": Column("may be\nidle"),
    "what": Column("what", folds=True),
}
# Of programs, which get the same columns when there is no node.
_SCHEMA = {
    "node": pl.String,
    "status": pl.String,
    "what": pl.String,
    "job": pl.String,
    "since": pl.String,
    "minutes": pl.Float64,
    "price_per_hour": pl.Float64,
    "dollars": pl.Float64,
    "idle": pl.String,
}
NONE = "No node of this folder's runs is rented.\n"
# Where Snakemake keeps what is its own.
SNAKEMAKE = Path(".snakemake")
# The names of a model's jobs: rule and wildcards.
JOB = r"record_outliers\.{model}|record_shard\.{model}\.\d+\.\d+"


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Add both commands.

    Args:
        commands: Where to.
    """
    nodes = commands.add_parser(
        "nodes",
        help="the rented nodes of this folder's runs, and what they cost so far",
        description="Rented nodes of this folder's runs, as SkyPilot has them. Wants the environment of make cloud.",
    )
    nodes.add_argument("--format", choices=get_args(OutputFormat), default="table", help="default: %(default)s")
    nodes.add_argument("--project", help="name in the nodes' names, where a run was given one (--skypilot-project)")
    ends = nodes.add_mutually_exclusive_group()
    ends.add_argument("--end", metavar="NAME", help="end a node")
    ends.add_argument("--all", action="store_true", help="end all of them")
    nodes.set_defaults(run=run_nodes)
    logs = commands.add_parser(
        "logs",
        help="what a model's job says: on its rented node, or in its logs on this machine",
        description="A job's output: of its node while it runs, else what was kept of it; else this machine's logs.",
    )
    logs.add_argument("model", metavar="MODEL", help="id of config/models.yaml")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job on a node ends")
    logs.add_argument("--project", help="as of nodes")
    logs.set_defaults(run=run_logs)


def run_nodes(arguments: argparse.Namespace) -> None:
    """Show the nodes, or end some.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If SkyPilot is not installed, or a node is none of this folder's.
    """
    sky = import_skypilot()
    nodes = _nodes(sky, arguments.project)
    if arguments.end or arguments.all:
        return _end(sky, nodes, arguments.end)
    if not nodes and arguments.format == "table":
        sys.stdout.write(NONE)
        return None
    frame = pl.DataFrame([_row(node) for node in nodes], schema=_SCHEMA)
    show_frame(frame, _COLUMNS, output_format=arguments.format, title="Rented nodes")
    if arguments.format == "table":
        show_note(f"${sum(node.dollars for node in nodes):.2f} so far, by SkyPilot's prices.")
    return None


def run_logs(arguments: argparse.Namespace) -> None:
    """Print what a model's job says.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If SkyPilot is not installed, or nothing is known of such a job.
    """
    here = local_logs(arguments.model)
    try:
        sky = import_skypilot()
    except StudyError:
        if not here:
            raise StudyError(
                "There are no logs of this model on this machine, and rented nodes cannot be asked.",
                file=LOGS,
                got=arguments.model,
                remedy="Run its stages; for rented nodes: make cloud, then .venv-cloud/bin/outlier-moe.",
            ) from None
        print_newest(here)
        return
    from snakemake_executor_plugin_skypilot.names import STATE, kept_logs
    from snakemake_executor_plugin_skypilot.runs import is_held
    from snakemake_executor_plugin_skypilot.watching import followed

    job = re.compile(JOB.format(model=re.escape(arguments.model)))
    kept = [path for name, path in kept_logs(SNAKEMAKE / STATE) if job.fullmatch(name)]
    if arguments.follow and (going_on := [path for path in kept if is_held(path)]):
        # Of a run on this machine: from the renting of the node on, and over the loss of one.
        for text in followed(going_on[-1]):
            sys.stdout.write(text)
            sys.stdout.flush()
        return
    running = [node for node in _nodes(sky, arguments.project) if job.fullmatch(node.job or "")]
    if running:
        sky.tail_logs(running[0].name, running[0].job_id, follow=arguments.follow)
        return
    if not kept and here:
        print_newest(here)
        return
    if not kept:
        raise StudyError(
            "No job of this model runs on a node, and none has.",
            file=SNAKEMAKE / STATE,
            got=arguments.model,
            remedy="outlier-moe nodes shows what runs.",
        )
    sys.stdout.write(kept[-1].read_text())


def _nodes(sky: Any, project: str | None) -> Sequence[RentedNode]:
    from snakemake_executor_plugin_skypilot.names import project_name
    from snakemake_executor_plugin_skypilot.watching import rented_nodes

    return rented_nodes(sky, project_name(Path.cwd(), project))


def _end(sky: Any, nodes: Sequence[RentedNode], name: str | None) -> None:
    from snakemake_executor_plugin_skypilot.names import STATE
    from snakemake_executor_plugin_skypilot.runs import belongs_to_a_run

    chosen = [node.name for node in nodes if name in (None, node.name)]
    if name is not None and not chosen:
        names = ", ".join(node.name for node in nodes) or "there is none"
        raise StudyError("No such node belongs to this folder's runs.", got=name, expected=names)
    if not chosen:
        sys.stdout.write(NONE)
    # All are asked for before one is waited for: ending a node takes a while.
    requests: dict[str, Any] = {}
    ended: list[str] = []
    left: dict[str, str] = {}
    for each in chosen:
        with _noted(left, each):
            requests[each] = sky.down(each)
    for each, request in requests.items():
        with _noted(left, each):
            sky.get(request)
            ended.append(each)
            sys.stdout.write(f"{each} is ended.\n")
    if any(belongs_to_a_run(each, SNAKEMAKE / STATE) for each in ended):
        sys.stderr.write(
            "Its run goes on, and takes it for lost: it rents another. Ctrl-C ends the run with its nodes.\n"
        )
    if left:
        raise StudyError(
            "What could not be ended may go on to cost money.",
            got="; ".join(f"{each}: {said}" for each, said in left.items()),
            remedy=f"See what sky status says of it, then: sky down {' '.join(left)}",
        )


@contextmanager
def _noted(left: dict[str, str], node: str) -> Iterator[None]:
    """Note a node that cannot be ended, and go on with the others."""
    from snakemake_executor_plugin_skypilot.errors import first_line

    try:
        yield
    except Exception as error:  # SkyPilot's own, and those of the connection to its server.
        left[node] = first_line(error)


def _row(node: RentedNode) -> dict[str, Any]:
    idle = node.idle_minutes_left
    return {
        "node": node.name,
        "status": node.status,
        "what": node.what,
        "job": node.job,
        "since": datetime.fromtimestamp(node.launched_at).strftime("%H:%M"),
        "minutes": (time.time() - node.launched_at) / 60,
        "price_per_hour": node.price_per_hour,
        "dollars": node.dollars,
        "idle": "in use" if node.job else f"{idle} min" if idle else "for ever",
    }
