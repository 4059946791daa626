"""`outlier-moe top`: a model's largest features, or the experts of its outlier tokens."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import polars as pl

from outlier_moe.commands.definitions import definitions_of, tell_definitions, tell_differences, with_definitions
from outlier_moe.commands.places import CONFIG
from outlier_moe.commands.tables import read_table, tell_degenerate
from outlier_moe.config.registry import load_registry
from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError, nearest
from outlier_moe.statistics.degenerate import share_of_features, with_degenerate
from outlier_moe.terminal.figures import plain
from outlier_moe.terminal.presentation import Column, show_frame

FEATURES = {
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

EXPERTS = {
    "layer": Column("layer", "count"),
    "expert": Column("expert", "count"),
    "kind": Column("kind"),
    "outlier_share": Column("outlier\ntokens %", "percent"),
    "rest_share": Column("other\ntokens %", "percent"),
    "outlier_lift": Column("lift", "decimal"),
    "n_outlier_tokens": Column("outlier\ntokens", "count"),
    "n_tokens": Column("tokens", "count"),
}


def add_parser(
    commands: argparse._SubParsersAction, shared: argparse.ArgumentParser, registered: argparse.ArgumentParser
) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: The options that all commands have.
        registered: Those of commands that look into the registry.
    """
    top = commands.add_parser("top", parents=[shared, registered], help="a model's largest features, or its experts")
    top.add_argument("model", metavar="MODEL", help="an id of config/models.yaml")
    top.add_argument("--preset", default="dettmers2022", help="which definition (default: %(default)s)")
    top.add_argument("-n", type=positive, default=20, help="how many (default: %(default)s)")
    top.add_argument(
        "--experts", action="store_true", help="instead, the experts whose share of the outlier tokens stands out most"
    )
    top.add_argument("--without-first-token", action="store_true", help="leave each sequence's first token out")
    top.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    top.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number from 1 up.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got '{text}'")


def run(arguments: argparse.Namespace) -> None:
    """Print the features, or the experts.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If the model or the preset is unknown, the model has no experts, or there is no table yet.
    """
    if arguments.experts:
        _experts(arguments)
        return
    path = arguments.results / arguments.model / "systematic.parquet"
    if not path.parent.is_dir() and arguments.registry.is_file():
        # A name that is no model's is told as such: Snakemake could not make its table.
        load_registry(arguments.registry, arguments.registry_schema).model(arguments.model)
    table = read_table(path, remedy=f"Run: snakemake {path}", needs=("preset", "first_token", *FEATURES))
    known = {*table["preset"].unique(), *definitions_of(path), *_defined_presets(arguments)}
    if arguments.preset not in known:
        raise StudyError(
            "The study has no such preset.", file=path, got=arguments.preset, remedy=nearest(arguments.preset, known)
        )
    rows = table.filter(
        preset=arguments.preset, first_token="excluded" if arguments.without_first_token else "included"
    )
    if rows.is_empty():
        first = " behind each sequence's first token" if arguments.without_first_token else ""
        sys.stderr.write(f"No feature of {arguments.model} is found by {arguments.preset}{first}.\n")
        if arguments.format == "table":
            return
    share = share_of_features(rows, arguments.results / arguments.model / "outliers" / "run.json")
    top = rows.sort("is_systematic", "peak", descending=True).head(arguments.n)
    top = with_definitions(with_degenerate(top.with_columns(d_model_share=pl.lit(share, pl.Float64))), path)
    show_frame(top, FEATURES, output_format=arguments.format, title=f"{arguments.model}, preset {arguments.preset}")
    if arguments.format == "table":
        tell_definitions(path, [arguments.preset])
        tell_degenerate(top)
    tell_differences(path, [arguments.results / "comparison" / "models.parquet"])


def _defined_presets(arguments: argparse.Namespace) -> set[str]:
    """The presets of the study, including those that find nothing."""
    found: set[str] = set()
    compared = arguments.results / "comparison" / "models.parquet"
    if compared.is_file():
        found |= set(read_table(compared, remedy=f"Run: snakemake {compared}", needs=("preset",))["preset"])
    if arguments.config.is_file():
        section = (read_yaml(arguments.config) or {}).get("filter_systematic") or {}
        found |= set(section.get("presets") or {})
    return found


def _experts(arguments: argparse.Namespace) -> None:
    # The statistics take a second to load, which the other commands need not wait for.
    from outlier_moe.statistics.routing import most_striking

    _refuse_dense(arguments)
    path = arguments.results / "comparison" / "expert_routing.parquet"
    table = read_table(path, remedy=f"Run: snakemake {path}", needs=("model", "magnitude", *EXPERTS))
    of_model = table.filter(model=arguments.model)
    if of_model.is_empty():
        known = table["model"].unique(maintain_order=True).to_list()
        raise StudyError(
            "The table has no such model.",
            file=path,
            expected=f"a model whose experts were recorded: {', '.join(known) or 'there is none'}",
            got=arguments.model,
            remedy=f"Record it as a model of the study, then run: snakemake {path}",
        )
    top = most_striking(of_model).head(arguments.n).with_columns(pl.col("kind").cast(pl.String))
    title = f"{arguments.model}, outlier tokens from |x| >= {plain(of_model['magnitude'][0], 6)} on"
    show_frame(top, EXPERTS, output_format=arguments.format, title=title)


def _refuse_dense(arguments: argparse.Namespace) -> None:
    """Refuse a dense model, which has no experts: by its recording if there is one, else by the registry."""
    folder = arguments.results / arguments.model / "outliers"
    file: Path = folder
    if folder.is_dir():
        is_dense = not (folder / "experts.parquet").exists()
    elif arguments.registry.is_file():
        file = arguments.registry
        is_dense = load_registry(file, arguments.registry_schema).model(arguments.model).kind == "dense"
    else:
        return
    if is_dense:
        raise StudyError(
            "The model is dense: it has no experts.",
            file=file,
            expected="a Mixture-of-Experts model",
            got=arguments.model,
            remedy=f"Its largest features: outlier-moe top {arguments.model}",
        )
