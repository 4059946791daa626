"""`outlier-moe plan`: what recording a model takes, and what it costs to rent, before anything is downloaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import polars as pl

from outlier_moe.commands.places import CLUSTER, CONFIG, FETCHED, REGISTRY, SCHEMAS
from outlier_moe.config.registry import load_registry
from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError
from outlier_moe.machine.start_up import uncollected
from outlier_moe.study.study import validated_study
from outlier_moe.terminal.figures import plain, power_of_ten
from outlier_moe.terminal.presentation import Column, OutputFormat, show_frame, show_note

if TYPE_CHECKING:
    from outlier_moe.config.cluster import Cluster
    from outlier_moe.planning.plan import ModelPlan
    from outlier_moe.planning.workload import DeviceType

_COLUMNS = {
    "model": Column("model", folds=True),
    "params": Column("params\n     B", spare=1),
    "stored": Column("on disk\n     GB"),
    "layer": Column("layer\n   GB", spare=2),
    "here": Column("here, GB:\nwhole/layers"),
    "fits": Column("fits\nhere"),
    "minutes_here": Column("  min\n here"),
    "flop": Column("  FLOP", spare=3),
    "node": Column("cheapest node", folds=True),
    "time": Column("min"),
    "price": Column("  $"),
}
GB = 10**9


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "plan",
        help="what recording a model takes: memory, disk, time, and the price of renting",
        description="What recording takes, from each model's configuration alone. Downloads no weights.",
    )
    add_choices(parser)
    parser.set_defaults(run=run)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is planned, and from what.

    Args:
        parser: Where to.
    """
    parser.add_argument("models", nargs="*", metavar="MODEL", help="ids of config/models.yaml; default: the study's")
    parser.add_argument("--sweep", help="all models of a sweep: demo, dense, moe, survey, classics, full")
    parser.add_argument("--format", choices=get_args(OutputFormat), default="table", help="default: %(default)s")
    parser.add_argument(
        "--no-hub", action="store_true", help="ask no hub: take what is fetched, in its cache, or known"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    parser.add_argument("--registry", type=Path, default=REGISTRY, help="default: %(default)s")
    parser.add_argument("--cluster", type=Path, default=CLUSTER, help="default: %(default)s")
    parser.add_argument("--schemas", type=Path, default=SCHEMAS, help=argparse.SUPPRESS)
    parser.add_argument("--fetched", type=Path, default=FETCHED, help="fetched models (default: %(default)s)")


class Planned(NamedTuple):
    """The plans of the chosen models, and what they were made for."""

    plans: list[ModelPlan]
    """The plan of each model."""
    cluster: Cluster
    """The nodes that can be rented."""
    tokens: str
    """How many tokens of each model, for a title."""
    training: dict[str, int]
    """Number of jobs of each chosen training experiment."""
    device: DeviceType
    """Where a model would run on this machine."""


def run(arguments: argparse.Namespace) -> None:
    """Print the plan: the table on standard output, what is unknown on standard error.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If the study, the registry or the tiers are wrong, or a model or sweep is unknown.
    """
    plans, cluster, tokens, _, device = plan_chosen(arguments)
    rows = [_row(plan) | {"here_products_s": _seconds_here(plan, device)} for plan in plans]
    frame = pl.DataFrame(rows)
    if arguments.format == "table":
        frame = pl.DataFrame([_for_people(row) for row in rows])
    show_frame(frame, _COLUMNS, output_format=arguments.format, title=f"Recording {tokens}, {device} here")
    if arguments.format == "table":
        _warn(plans, cluster.max_price_total)


def plan_chosen(arguments: argparse.Namespace) -> Planned:
    """The plans of the models that a command line chooses.

    Args:
        arguments: The command line, with what `add_choices` added.

    Raises:
        StudyError: If the study, the registry or the tiers are wrong, or a model or sweep is unknown.
    """
    # torch and transformers, which the other commands do without.
    with uncollected():
        from outlier_moe.config.cluster import load_cluster
        from outlier_moe.planning.lengths import refuse_long_sequences
        from outlier_moe.planning.plan import plan_models, this_machine
        from outlier_moe.study.experiments import training_jobs

    study = validated_study(read_yaml(arguments.config), arguments.schemas / "config.schema.yaml")
    registry = load_registry(arguments.registry, arguments.schemas / "models.schema.yaml")
    cluster = load_cluster(arguments.cluster, arguments.schemas / "cluster.schema.yaml")
    if arguments.models and arguments.sweep:
        raise StudyError("Both models and a sweep are named.", key="--sweep", remedy="Name either.")
    named = arguments.models or ([] if arguments.sweep else study["models"])
    study |= {"models": named, "sweep": arguments.sweep or study["sweep"]}
    chosen = registry.chosen(named, sweep=study["sweep"])
    there, length, here = [], study["tokenize_corpus"]["sequence_length"], this_machine()
    for entry in chosen:
        if entry.unavailable is None:
            there.append(entry)
        else:
            sys.stderr.write(f"{entry.id} is left out: {entry.unavailable}\n")
    refuse_long_sequences(there, length, arguments.fetched)
    plans = []
    for plan in plan_models(there, arguments.fetched, study, cluster, here, ask_hub=not arguments.no_hub):
        if plan.note is not None:
            sys.stderr.write(f"{plan.entry.id} is planned from the registry's figures. {plan.note}\n")
        if plan.caveat is not None:
            sys.stderr.write(f"{plan.entry.id}: {plan.caveat}\n")
        plans.append(plan)
    sequences = sorted({plan.workload.n_sequences for plan in plans})
    tokens = f"{' or '.join(map(str, sequences))} x {length} tokens"
    return Planned(plans, cluster, tokens, training_jobs(study), here.device)


def _seconds_here(plan: ModelPlan, device: DeviceType) -> float | None:
    """The time of the matrix products alone on this machine, if the model fits into its memory."""
    from outlier_moe.planning.speed import flops_per_second

    return plan.effort.flops / flops_per_second(plan.sizes.dtype, device) if plan.fits_here else None


def _row(plan: ModelPlan) -> dict[str, Any]:
    """All figures of a plan for programs; sizes in bytes."""
    sizes, node = plan.sizes, plan.node
    row: dict[str, Any] = {
        "model": plan.entry.id,
        "basis": plan.basis,
        "n_sequences": plan.workload.n_sequences,
        "sequence_length": plan.workload.sequence_length,
        "dtype": sizes.dtype,
        "n_parameters": sizes.n_parameters,
        "n_layers": len(sizes.layers),
        "stored_bytes": plan.stored_bytes,
        "computed_bytes": sizes.computed_bytes,
        "largest_layer_stored_bytes": max(layer.stored for layer in sizes.layers),
        "largest_layer_computed_bytes": max(layer.computed for layer in sizes.layers),
        "flops": plan.effort.flops,
        "fits_here": ", ".join(plan.fits_here),
    }
    for mode in ("resident", "streamed"):
        here, rented = plan.here.get(mode), plan.rented.get(mode)
        row[f"{mode}_here_bytes"] = None if here is None else (here.device or here.process).total
        row[f"{mode}_host_bytes"] = None if rented is None else rented.process.total
        row[f"{mode}_gpu_bytes"] = None if rented is None or rented.device is None else rented.device.total
    return row | {
        "tier": None if node is None else node.tier.name,
        "accelerators": None if node is None else node.tier.resource,
        "cheapest": None if node is None else f"{node.accelerator.name}:{node.tier.count}",
        "mode": None if node is None else node.mode,
        "disk_gb": None if node is None else node.disk_gb,
        "evict": None if node is None else node.evict,
        "time_s": None if node is None else node.time_s,
        "price_usd": None if node is None else node.price,
        "spot": None if node is None else node.tier.spot,
        "n_gpus": None if node is None else node.tier.count,
        "idle_minutes": None if node is None else node.tier.idle_minutes,
        "max_price_per_hour": None if node is None else node.tier.max_price_per_hour,
    }


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    sizes = [row[f"{mode}_here_bytes"] for mode in ("resident", "streamed")]
    node = "none"
    if row["tier"]:
        how = "whole" if row["mode"] == "resident" else "by layer"
        node = f"{row['tier']}, {how}" + (", evict" if row["evict"] else "")
    return {
        "model": row["model"] + ("*" if row["basis"] == "registry" else ""),
        "params": f"{row['n_parameters'] / 1e9:6.2f}",
        "stored": f"{row['stored_bytes'] / GB:7.1f}",
        "layer": f"{row['largest_layer_computed_bytes'] / GB:5.2f}",
        "here": "/".join("-" if size is None else f"{size / GB:.1f}" for size in sizes).rjust(12),
        "fits": {"": "no", "streamed": "by layer"}.get(row["fits_here"], "whole"),
        "minutes_here": "-" if row["here_products_s"] is None else _minutes(row["here_products_s"]),
        "flop": power_of_ten(row["flops"]),
        "node": node,
        "time": "-" if row["time_s"] is None else f"{row['time_s'] / 60:3.0f}",
        "price": "-" if row["price_usd"] is None else f"{row['price_usd']:.2f}",
    }


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:8,.0f}" if minutes >= 10 else f"{minutes:8.1f}"


def _warn(plans: list[ModelPlan], max_price_total: float) -> None:
    if any(plan.basis == "registry" for plan in plans):
        show_note("* from the registry's figures: layers and activations are guessed.")
    if any(plan.fits_here for plan in plans):
        show_note("Minutes here: the matrix products alone, at the speed measured just now; counting comes on top.")
    total = sum(plan.node.price for plan in plans if plan.node is not None)
    over = f", more than max_price_total ({plain(max_price_total, 6)})" if total > max_price_total else ""
    show_note(f"All of it rented, one node after the other: ${total:.2f}{over}.")
