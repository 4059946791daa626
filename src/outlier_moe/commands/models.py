"""`outlier-moe models`: the registry, which models are done, and what the others lack."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from outlier_moe.commands.places import FETCHED
from outlier_moe.config.model_labels import fetched_labels
from outlier_moe.config.registry import (
    CheckpointSource,
    DirectorySource,
    GgufSource,
    GgufWheelSource,
    HubSource,
    ModelEntry,
    ModelSource,
    load_registry,
)
from outlier_moe.terminal.presentation import Column, show_frame

COLUMNS = {
    "model": Column("model", folds=True),
    "kind": Column("kind"),
    "total_params_b": Column("params\n(B)", "decimal"),
    "active_params_b": Column("active\n(B)", "decimal"),
    "done": Column("done"),
    "lacks": Column("lacks", folds=True),
    "source": Column("source", folds=True),
}
_STAGES = {"systematic.parquet": "filtered", "outliers": "recorded", "tokens.arrow": "tokenised"}


def add_parser(
    commands: argparse._SubParsersAction, shared: argparse.ArgumentParser, registered: argparse.ArgumentParser
) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: The options that all commands have.
        registered: Those of commands that look into the registry.
    """
    parser = commands.add_parser(
        "models", parents=[shared, registered], help="the registry: which models are done, and what the others lack"
    )
    parser.add_argument("--fetched", type=Path, default=FETCHED, help="fetched models (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print a row for each model of the registry.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If the registry is wrong.
    """
    registry = load_registry(arguments.registry, arguments.registry_schema)
    rows = []
    for entry in registry.models.values():
        done = [name for file, name in _STAGES.items() if (arguments.results / entry.id / file).exists()]
        shown = fetched_labels(arguments.fetched / entry.id)
        # The configuration of a fetched model knows what an entry leaves out.
        known = {} if shown is None else shown._asdict()
        known |= {name: label for name, label in entry.labels.items() if label is not None}
        rows.append(
            {
                "model": entry.id,
                **{name: known.get(name) for name in ("kind", "family", "total_params_b", "active_params_b")},
                "source": _origin(entry.source),
                "unavailable": entry.unavailable,
                "sweeps": ", ".join(entry.sweeps),
                "done": done[0] if done else "",
                "lacks": lacking(entry, arguments.fetched),
            }
        )
    show_frame(
        pl.DataFrame(rows, infer_schema_length=None),
        COLUMNS,
        output_format=arguments.format,
        title=str(arguments.registry),
    )


def lacking(entry: ModelEntry, fetched: Path) -> str:
    """What a model still needs before it can be recorded, as far as is known without the hub.

    Args:
        entry: The model.
        fetched: The folder with a folder for each fetched model.
    """
    if entry.source is None:
        return "cannot be had"
    if (fetched / entry.id / "source.json").is_file():
        return ""
    if isinstance(entry.source, DirectorySource | CheckpointSource) and not entry.source.path.expanduser().is_dir():
        return "its folder is not there"
    if isinstance(entry.source, GgufSource) and not entry.source.path.expanduser().exists():
        return "its file is not there"
    if isinstance(entry.source, HubSource) and entry.gated and not _has_token():
        return "a token of an account that accepted its licence (hf auth login); not fetched"
    return "not fetched"


def _has_token() -> bool:
    # It takes a while to load, and most of the models need none.
    from huggingface_hub import get_token

    return get_token() is not None


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
