"""`outlier-moe cost`: what a study on rented nodes costs, by the prices of the hour."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from outlier_moe.commands.plan import add_choices, plan_chosen
from outlier_moe.commands.skypilot import import_skypilot
from outlier_moe.errors import StudyError
from outlier_moe.terminal.figures import plain
from outlier_moe.terminal.presentation import Column, show_frame, show_note

if TYPE_CHECKING:
    from outlier_moe.config.cluster import Accelerator, Cluster, Tier
    from outlier_moe.planning.plan import ModelPlan
    from snakemake_executor_plugin_skypilot.prices import Offer

_COLUMNS = {
    "model": Column("model or\nexperiment", folds=True),
    "jobs": Column("jobs", "count"),
    "tier": Column("tier"),
    "node": Column("cheapest node", folds=True, spare=1),
    "mode": Column("runs", spare=2),
    "minutes": Column("min", "count"),
    "on_demand_per_hour": Column("$/h", "decimal", spare=2),
    "spot_per_hour": Column("spot\n $/h", "decimal", spare=3),
    "on_demand": Column("  $", "decimal"),
    "spot": Column("spot\n   $", "decimal"),
}


class Catalogue(NamedTuple):
    """What SkyPilot's catalogue says of the nodes of config/cluster.yaml."""

    offers: Mapping[tuple[str, int], Offer]
    """Offers by card and number of cards."""

    def cheapest(self, tier: Tier) -> tuple[Accelerator, float]:
        """The card and price of a tier's cheapest node on demand; the price in the file if the node is not sold."""

        def price(card: Accelerator) -> float:
            offer = self.offers.get((card.name, tier.count))
            in_file = tier.count * card.price_per_hour
            return in_file if offer is None or offer.on_demand is None else offer.on_demand

        card = min(tier.accelerators, key=price)
        return card, price(card)

    def spot(self, tier: Tier) -> float | None:
        """The price of a tier's cheapest node that may be taken away; None if none is sold so."""
        offers = [self.offers.get((card.name, tier.count)) for card in tier.accelerators]
        return min((offer.spot for offer in offers if offer is not None and offer.spot is not None), default=None)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "cost",
        help="what a study on rented nodes costs, by the prices of the hour",
        description="What rented nodes cost, by SkyPilot's catalogue. Rents nothing. Wants the set-up of make cloud.",
    )
    add_choices(parser)
    parser.add_argument("--infra", default="runpod", help="as SkyPilot writes it (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the cost: the table on standard output, what is unknown on standard error.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If SkyPilot is not installed, or what is chosen is unknown or wrong.
    """
    # Before models are planned, which takes a while.
    sky = import_skypilot()
    # By the prices of the file, as a run plans them.
    planned = plan_chosen(arguments)
    cluster = planned.cluster
    catalogue = _catalogue(cluster, arguments.infra, sky.catalog)
    rows = [_row(plan, cluster, catalogue) for plan in planned.plans]
    rows += [_training_row(name, n_jobs, cluster, catalogue) for name, n_jobs in planned.training.items()]
    title = f"Recording {planned.tokens}, each job on a node of its own"
    show_frame(pl.DataFrame(rows, infer_schema_length=None), _COLUMNS, output_format=arguments.format, title=title)
    if arguments.format == "table":
        _total(rows, cluster)


def _catalogue(cluster: Cluster, infra: str, catalog: Any) -> Catalogue:
    from snakemake_executor_plugin_skypilot.errors import RentalError
    from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators
    from snakemake_executor_plugin_skypilot.prices import Prices

    try:
        prices = Prices(infra, catalog)
    except RentalError as error:
        raise StudyError(str(error)) from None
    offers = {}
    wanted = {(card.name, tier.count) for tier in cluster.tiers for card in tier.accelerators}
    for name, count in sorted(wanted):
        try:
            offers[name, count] = prices.offers([Accelerators(name, count)])[0]
        except RentalError as error:
            sys.stderr.write(f"{name}:{count} has the price of {cluster.file}. {error}\n")
    return Catalogue(offers)


def _row(plan: ModelPlan, cluster: Cluster, catalogue: Catalogue) -> dict[str, Any]:
    """The node that SkyPilot would take for a model, which is the cheapest an hour of its tier, and its price."""
    from outlier_moe.planning.effort import node_on
    from outlier_moe.planning.rented import SLACK

    n_jobs = plan.workload.shards
    if plan.node is None:
        empty = dict.fromkeys((*_COLUMNS, "reserved"), None)
        return empty | {"model": plan.entry.id, "jobs": n_jobs, "tier": "none fits"}
    tier = plan.node.tier
    node = node_on(plan.effort, tier, catalogue.cheapest(tier)[0], plan.node.mode, cluster)
    assert node is not None
    mode = "whole" if node.mode == "resident" else "by layer"
    # As the jobs' resource runtime has it.
    reserved_minutes = n_jobs * math.ceil(SLACK * plan.node.time_s / 60)
    rent = _rent(tier, catalogue, minutes=node.time_s / 60, reserved_minutes=reserved_minutes)
    return {"model": plan.entry.id, "jobs": n_jobs, "tier": tier.name, "mode": mode} | rent


def _training_row(experiment: str, n_jobs: int, cluster: Cluster, catalogue: Catalogue) -> dict[str, Any]:
    """The price of a training experiment's jobs."""
    tier, minutes = cluster.training_tier, n_jobs * cluster.training_minutes
    rent = _rent(tier, catalogue, minutes=minutes, reserved_minutes=minutes)
    return {"model": experiment, "jobs": n_jobs, "tier": tier.name, "mode": "training"} | rent


def _rent(tier: Tier, catalogue: Catalogue, *, minutes: float, reserved_minutes: float) -> dict[str, Any]:
    card, on_demand = catalogue.cheapest(tier)
    spot = catalogue.spot(tier)
    reserved = spot if tier.spot and spot is not None else on_demand
    return {
        "node": f"{card.name}:{tier.count}",
        "minutes": round(minutes),
        "on_demand_per_hour": on_demand,
        "spot_per_hour": spot,
        "on_demand": minutes / 60 * on_demand,
        "spot": None if spot is None else minutes / 60 * spot,
        "reserved": reserved_minutes / 60 * reserved,
    }


def _total(rows: list[dict[str, Any]], cluster: Cluster) -> None:
    on_demand = sum(row["on_demand"] or 0 for row in rows)
    # Where no spot price is known, the other one.
    spot = sum(row["spot"] or row["on_demand"] or 0 for row in rows)
    # A run makes sure of more than is expected before it starts.
    reserved = sum(row["reserved"] or 0 for row in rows)
    over = "; that is more than it may" if reserved > cluster.max_price_total else ""
    show_note(
        f"In all ${on_demand:.2f} on demand, ${spot:.2f} spot. A run reckons with up to ${reserved:.2f}, of at most "
        f"${plain(cluster.max_price_total, 6)}{over}. Nodes that are kept for several jobs cost less."
    )
