"""`outlier-moe count-params`: the models that the experiments train, and how many parameters each has."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import polars as pl

from outlier_moe.errors import StudyError
from outlier_moe.machine.start_up import uncollected
from outlier_moe.terminal.presentation import Column, show_frame, show_note

if TYPE_CHECKING:
    from outlier_moe.training.parameter_counts import Computed, StepMemory

_COLUMNS = {
    "experiment": Column("experiment", folds=True),
    "model": Column("model", folds=True),
    "kind": Column("kind"),
    "d_model": Column("d_model", "count", spare=1),
    "n_layers": Column("layers", "count", spare=1),
    "n_parameters": Column("parameters", "count"),
    "n_active_parameters": Column("active per\ntoken", "count"),
    "batch_size": Column("batch", "count"),
    "step_memory_gib": Column("step GiB,\nfloat32", "decimal"),
    "step_memory_bfloat16_gib": Column("step GiB,\nbfloat16", "decimal"),
}
_FITTING = {
    "n_accumulate": Column("parts,\nfloat32", "count"),
    "n_accumulate_bfloat16": Column("parts,\nbfloat16", "count"),
}
_ASSUMED = """\
A step takes weights, gradients and the two states of AdamW in float32 (16 bytes a parameter), and what the backward
pass keeps of the forward pass: of the whole batch at once, with nothing computed twice. The latter is nearly all of it,
so runs in 2 to 16 GiB are of smaller batches, in bfloat16, or compute activations twice. Here the batch is cut into
parts of the same gradients, scale_sweep.training.n_accumulate; --memory GIB says into how many. CUDA itself takes about
half a GiB more.
"""


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "count-params", parents=[shared], help="the models that the experiments train, and their parameters"
    )
    parser.add_argument(
        "--memory", metavar="GIB", help="memory of a card in GiB: also say into how many parts a batch has to be cut"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    available = None if arguments.memory is None else _gib(arguments.memory)
    # torch and transformers, which the other commands do without.
    with uncollected():
        from outlier_moe.scale_sweep import vit
        from outlier_moe.training.parameter_counts import count_parameters
        from outlier_moe.upcycling import pairs

    rows = []
    for model in (*pairs.counted_models(), *vit.counted_models()):
        counts = count_parameters(model)
        rows.append(
            {
                "experiment": model.experiment,
                "model": model.model,
                "kind": model.kind,
                "d_model": model.d_model,
                "n_layers": model.n_layers,
                "n_parameters": counts.total,
                "n_active_parameters": counts.active,
                "batch_size": None,
                **_memory(model.memory, available),
            }
        )
    # Not all models have all columns.
    table = pl.DataFrame(rows, infer_schema_length=None)
    # In place of what names and parameters tell as well.
    of_size = ("d_model", "n_layers", "n_active_parameters")
    columns = _COLUMNS if available is None else {k: c for k, c in _COLUMNS.items() if k not in of_size} | _FITTING
    show_frame(table, columns, output_format=arguments.format, title="models of the experiments")
    if arguments.format == "table":
        show_note(_ASSUMED)
        if available is not None:
            # Unwrapped: it holds a command to copy.
            sys.stdout.write(_setting(table, available))


def _gib(text: str) -> float:
    """The memory of a card, in GiB."""
    try:
        available = float(text)
    except ValueError:
        available = math.nan
    if not 0 < available < math.inf:
        raise StudyError(
            "The memory of a card is no amount.",
            key="--memory",
            expected="GiB, a number above 0",
            got=text,
            remedy="Give the number alone: --memory 16",
        )
    return available


def _memory(memory: Mapping[Computed, StepMemory], available: float | None) -> dict[str, float | int | None]:
    """Columns for the memory of a step, and for the parts of a batch that fit into a card."""
    if not memory:
        return {}
    whole, halved = memory["float32"], memory["bfloat16"]
    found = {"batch_size": whole.batch_size, **whole.in_gib(), "step_memory_bfloat16_gib": halved.total / 2**30}
    if available is None:
        return found
    for suffix, of in (("", whole), ("_bfloat16", halved)):
        n_parts = of.n_parts(available * 2**30)
        in_parts = None if n_parts is None else of.in_parts(n_parts).total / 2**30
        found |= {f"n_accumulate{suffix}": n_parts, f"fitting{suffix}_gib": in_parts}
    return found


def _setting(table: pl.DataFrame, available: float) -> str:
    """What to set for all models, and which of them do not fit at all."""
    estimated = table.drop_nulls("batch_size")
    lines = []
    for precision, name in (("float32", "n_accumulate"), ("bfloat16", "n_accumulate_bfloat16")):
        too_large = estimated.filter(pl.col(name).is_null())["model"].to_list()
        if too_large:
            lines.append(f"In {precision} not even one image at a time fits: {', '.join(too_large)}.")
        n_parts = estimated[name].max()
        if n_parts is not None:
            setting = f"scale_sweep={{training: {{precision: {precision}, n_accumulate: {n_parts}}}}}"
            lines.append(f"For all that fit into {available:g} GiB: snakemake scale_sweep --config '{setting}'")
    return "\n".join(lines) + "\n"
