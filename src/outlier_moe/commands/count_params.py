"""`outlier-moe count-params`: the models that the experiments train, and how many parameters each has."""

from __future__ import annotations

import argparse

import polars as pl

from outlier_moe.lean_imports import uncollected
from outlier_moe.terminal.presentation import Column, show_frame

_COLUMNS = {
    "experiment": Column("experiment", folds=True),
    "model": Column("model", folds=True),
    "kind": Column("kind"),
    "d_model": Column("d_model", "count", spare=1),
    "n_layers": Column("layers", "count", spare=1),
    "n_parameters": Column("parameters", "count"),
    "n_active_parameters": Column("active per\ntoken", "count"),
    "batch_size": Column("batch", "count"),
    "step_memory_gib": Column("step, GiB\n(AdamW,\nfloat32)", "decimal"),
}


def add_parser(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "count-params", parents=[shared], help="the models that the experiments train, and their parameters"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
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
                "batch_size": None if model.memory is None else model.memory.batch_size,
                **({} if model.memory is None else model.memory.in_gib()),
            }
        )
    # Not all models have all columns.
    table = pl.DataFrame(rows, infer_schema_length=None)
    show_frame(table, _COLUMNS, output_format=arguments.format, title="models of the experiments")
