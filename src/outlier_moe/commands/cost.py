"""`outlier-moe cost`: what recording models on rented nodes costs, by the prices of the hour."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from outlier_moe.commands.plan import add_choices, plan_chosen
from outlier_moe.commands.skypilot import import_skypilot
from outlier_moe.terminal.presentation import Column, show_frame

if TYPE_CHECKING:
    from outlier_moe.planning.cluster import Cluster, Tier
    from outlier_moe.planning.plan import ModelPlan
    from snakemake_executor_plugin_skypilot.prices import Offer

_COLUMNS = {
    "model": Column("model"),
    "tier": Column("tier"),
    "node": Column("cheapest node"),
    "mode": Column("runs"),
    "minutes": Column("min", "count"),
    "on_demand_per_hour": Column("$/h", "decimal"),
    "spot_per_hour": Column("spot\n $/h", "decimal"),
    "on_demand": Column("  $", "decimal"),
    "spot": Column("spot\n   $", "decimal"),
}


class Catalogue(NamedTuple):
    """What SkyPilot's catalogue says of the nodes of config/cluster.yaml."""

    offers: Mapping[tuple[str, int], Offer]
    """By card and how many of them."""

    def changed(self, cluster: Cluster) -> Cluster:
        """The same nodes at the catalogue's prices; a card that is not sold now keeps the price that the file has."""
        return replace(cluster, tiers=tuple(self._repriced(tier) for tier in cluster.tiers))

    def _repriced(self, tier: Tier) -> Tier:
        cards = []
        for card in tier.accelerators:
            offer = self.offers.get((card.name, tier.count))
            price = offer.on_demand if offer is not None else None
            cards.append(card if price is None else replace(card, price_per_hour=price / tier.count))
        return replace(tier, accelerators=tuple(cards))


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "cost",
        help="what recording on rented nodes costs, by the prices of the hour",
        description="What rented nodes cost, by SkyPilot's catalogue. Rents nothing. Wants the set-up of make cloud.",
    )
    add_choices(parser)
    parser.add_argument("--infra", default="runpod", help="as SkyPilot writes it (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the cost: the table on standard output, what it could not find out on the other.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If SkyPilot is not installed, or what is chosen is unknown or wrong.
    """
    # Before models are planned, which takes a while.
    sky = import_skypilot()
    read: list[Catalogue] = []

    def at_catalogue_prices(cluster: Cluster) -> Cluster:
        read.append(_catalogue(cluster, arguments.infra, sky.catalog))
        return read[0].changed(cluster)

    plans, cluster, workload, _ = plan_chosen(arguments, at_catalogue_prices)
    rows = [_row(plan, cluster, read[0]) for plan in plans]
    title = f"Recording {workload.n_sequences} x {workload.sequence_length} tokens, each model on a node of its own"
    show_frame(pl.DataFrame(rows, infer_schema_length=None), _COLUMNS, output_format=arguments.format, title=title)
    if arguments.format == "table":
        _total(rows, cluster)


def _catalogue(cluster: Cluster, infra: str, catalog: Any) -> Catalogue:
    from snakemake_executor_plugin_skypilot.errors import RentalError
    from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators
    from snakemake_executor_plugin_skypilot.prices import Prices

    prices, offers = Prices(infra, catalog), {}
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

    empty = dict.fromkeys(_COLUMNS, None) | {"model": plan.entry.id, "tier": "none fits"}
    if plan.node is None:
        return empty
    tier = plan.node.tier
    card = min(tier.accelerators, key=lambda card: card.price_per_hour)
    node = node_on(plan.effort, tier, card, plan.node.mode, cluster)
    assert node is not None
    offer = catalogue.offers.get((card.name, tier.count))
    spot_per_hour = offer.spot if offer is not None else None
    hours = node.time_s / 3600
    return {
        "model": plan.entry.id,
        "tier": tier.name,
        "node": f"{card.name}:{tier.count}",
        "mode": "whole" if node.mode == "resident" else "by layer",
        "minutes": round(node.time_s / 60),
        "on_demand_per_hour": tier.count * card.price_per_hour,
        "spot_per_hour": spot_per_hour,
        "on_demand": hours * tier.count * card.price_per_hour,
        "spot": None if spot_per_hour is None else hours * spot_per_hour,
    }


def _total(rows: list[dict[str, Any]], cluster: Cluster) -> None:
    from outlier_moe.planning.rented import SLACK

    on_demand = sum(row["on_demand"] or 0 for row in rows)
    # Where no spot price is known, the other one.
    spot = sum(row["spot"] or row["on_demand"] or 0 for row in rows)
    # A run makes sure of more than is expected before it starts.
    reserved = SLACK * on_demand
    over = "; that is more than it may" if reserved > cluster.max_price_total else ""
    sys.stdout.write(
        f"In all ${on_demand:.2f} on demand, ${spot:.2f} spot. A run reckons with up to ${reserved:.2f}, of at most "
        f"${cluster.max_price_total:g}{over}. Nodes that are kept for several models cost less.\n"
    )
