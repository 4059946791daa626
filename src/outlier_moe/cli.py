"""The command `outlier-moe`: looks at what snakemake has made. Results go to standard output, the rest to the other."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import polars as pl

from outlier_moe import __version__
from outlier_moe.commands import compare, cost, count_params, nodes, plan, sweep, upcycling, verify
from outlier_moe.commands.definitions import tell_definitions, tell_differences, with_definitions
from outlier_moe.commands.tables import read_table, tell_degenerate, tell_nonfinite, with_marks
from outlier_moe.disk_trouble import disk_trouble
from outlier_moe.errors import StudyError, nearest
from outlier_moe.registry import (
    CheckpointSource,
    DirectorySource,
    GgufSource,
    GgufWheelSource,
    HubSource,
    ModelSource,
    load_registry,
)
from outlier_moe.statistics.degenerate import share_of_features, with_degenerate
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

_TOP = {
    "feature": Column("feature"),
    "peak": Column("peak |x|", "magnitude"),
    "peak_tap": Column("tap"),
    "peak_layer": Column("layer"),
    "peak_sequence": Column("sequence", spare=2),
    "peak_position": Column("position", spare=2),
    "layer_fraction": Column("layers %", "percent"),
    "position_fraction": Column("positions %", "percent"),
    "is_systematic": Column("systematic"),
}

_EXPERTS = {
    "layer": Column("layer", "count"),
    "expert": Column("expert", "count"),
    "kind": Column("kind"),
    "outlier_share": Column("outlier\ntokens %", "percent"),
    "rest_share": Column("other\ntokens %", "percent"),
    "outlier_lift": Column("lift", "decimal"),
    "n_outlier_tokens": Column("outlier\ntokens", "count"),
    "n_tokens": Column("tokens", "count"),
}

_MODELS = {
    "model": Column("model", folds=True),
    "kind": Column("kind"),
    "total_params_b": Column("params\n(B)", "decimal"),
    "active_params_b": Column("active\n(B)", "decimal"),
    "done": Column("done"),
    "source": Column("source", folds=True),
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


def _top(arguments: argparse.Namespace) -> None:
    if arguments.experts:
        _top_experts(arguments)
        return
    path = arguments.results / arguments.model / "systematic.parquet"
    if not path.parent.is_dir() and arguments.registry.is_file():
        # A name that is no model's is told as such: Snakemake could not make its table.
        load_registry(arguments.registry, arguments.registry_schema).model(arguments.model)
    table = read_table(path, remedy=f"Run: snakemake {path}", needs=("preset", "first_token", *_TOP))
    known = table["preset"].unique().to_list()
    if arguments.preset not in known:
        raise StudyError(
            "The table has no such preset.", file=path, got=arguments.preset, remedy=nearest(arguments.preset, known)
        )
    rows = table.filter(
        preset=arguments.preset, first_token="excluded" if arguments.without_first_token else "included"
    )
    share = share_of_features(rows, arguments.results / arguments.model / "outliers" / "run.json")
    top = rows.sort("is_systematic", "peak", descending=True).head(arguments.n)
    top = with_definitions(with_degenerate(top.with_columns(d_model_share=pl.lit(share, pl.Float64))), path)
    show_frame(top, _TOP, output_format=arguments.format, title=f"{arguments.model}, preset {arguments.preset}")
    if arguments.format == "table":
        tell_definitions(path, [arguments.preset])
        tell_degenerate(top)
    tell_differences(path, [arguments.results / "comparison" / "models.parquet"])


def _top_experts(arguments: argparse.Namespace) -> None:
    # The statistics take a second to load, which the other commands need not wait for.
    from outlier_moe.statistics.routing import most_striking

    path = arguments.results / "comparison" / "expert_routing.parquet"
    table = read_table(path, remedy=f"Run: snakemake {path}", needs=("model", "magnitude", *_EXPERTS))
    of_model = table.filter(model=arguments.model)
    if of_model.is_empty():
        known = table["model"].unique(maintain_order=True).to_list()
        expected = f"a model whose experts were recorded: {', '.join(known) or 'there is none'}"
        raise StudyError("The table has no such model.", file=path, expected=expected, got=arguments.model)
    top = most_striking(of_model).head(arguments.n).with_columns(pl.col("kind").cast(pl.String))
    title = f"{arguments.model}, outlier tokens from |x| >= {of_model['magnitude'][0]:g} on"
    show_frame(top, _EXPERTS, output_format=arguments.format, title=title)


def _origin(source: ModelSource | None) -> str:
    match source:
        case HubSource():
            return source.repo
        case GgufWheelSource():
            return f"{source.package} {source.version}"
        case DirectorySource() | CheckpointSource() | GgufSource():
            return str(source.path)
        case None:
            return "unavailable"


def _models(arguments: argparse.Namespace) -> None:
    registry = load_registry(arguments.registry, arguments.registry_schema)
    stages = {"systematic.parquet": "filtered", "outliers": "recorded", "tokens.arrow": "tokenised"}
    rows = []
    for entry in registry.models.values():
        done = [name for file, name in stages.items() if (arguments.results / entry.id / file).exists()]
        rows.append(
            {
                "model": entry.id,
                "kind": entry.kind,
                "family": entry.family,
                "total_params_b": entry.total_params_b,
                "active_params_b": entry.active_params_b,
                "source": _origin(entry.source),
                "unavailable": entry.unavailable,
                "sweeps": ", ".join(entry.sweeps),
                "done": done[0] if done else "",
            }
        )
    show_frame(pl.DataFrame(rows), _MODELS, output_format=arguments.format, title=str(arguments.registry))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="outlier-moe", description="Look at the results of the outlier_moe pipeline.")
    parser.add_argument("--version", action="version", version=__version__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--format", choices=get_args(OutputFormat), default="table", help="default: %(default)s")
    shared.add_argument(
        "--results", type=Path, default=Path("results"), help="the pipeline's results (default: ./results)"
    )
    registered = argparse.ArgumentParser(add_help=False)
    registered.add_argument("--registry", type=Path, default=Path("config/models.yaml"), help="default: %(default)s")
    registered.add_argument(
        "--registry-schema", type=Path, default=Path("workflow/schemas/models.schema.yaml"), help="default: %(default)s"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", parents=[shared], help="all models side by side, by every preset")
    show.set_defaults(run=_show)

    top = commands.add_parser("top", parents=[shared, registered], help="a model's largest features, or its experts")
    top.add_argument("model", metavar="MODEL", help="an id of config/models.yaml")
    top.add_argument("--preset", default="dettmers2022", help="which definition (default: %(default)s)")
    top.add_argument("-n", type=int, default=20, help="how many (default: %(default)s)")
    top.add_argument(
        "--experts", action="store_true", help="instead, the experts whose share of the outlier tokens stands out most"
    )
    top.add_argument("--without-first-token", action="store_true", help="leave each sequence's first token out")
    top.set_defaults(run=_top)

    models = commands.add_parser("models", parents=[shared, registered], help="the registry, and which models are done")
    models.set_defaults(run=_models)
    compare.add_parser(commands)
    verify.add_parser(commands, shared)
    plan.add_parser(commands)
    cost.add_parser(commands)
    nodes.add_parsers(commands)
    count_params.add_parser(commands, shared)
    sweep.add_parser(commands, shared)
    upcycling.add_parser(commands, shared)
    return parser


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
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        # The reader (head, say) has enough.
        _drop_output()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        told = disk_trouble(error, Path("standard output"))
        if told is None:
            raise
        if error.filename is None:
            told = StudyError(
                "Standard output cannot be written to.",
                got=str(error),
                remedy="Make room where it goes, or send it elsewhere: > another/place.csv",
            )
            _drop_output()
        sys.stderr.write(f"{told}\n")
        return 1
    return 0


def _drop_output() -> None:
    """Let go of what standard output did not take; else the interpreter complains once more while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
