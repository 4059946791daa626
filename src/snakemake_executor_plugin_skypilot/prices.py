"""What nodes cost, by SkyPilot's catalogue, and what a run is going to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from snakemake_executor_plugin_skypilot.errors import told
from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode


class Offer(NamedTuple):
    """A node as a cloud sells it."""

    accelerators: Accelerators
    """Its cards."""
    on_demand: float | None
    """Dollars an hour, where it costs least; None if it is not sold so."""
    spot: float | None
    """Dollars an hour of one that may be taken away."""
    memory_gb: float | None
    """Memory beside the cards of the smallest one."""

    def price(self, spot: bool) -> float | None:
        """Dollars an hour."""
        return self.spot if spot else self.on_demand


class Prices:
    """The catalogue of a cloud, which SkyPilot keeps in this account and renews every few hours.

    Args:
        infra: Where, as SkyPilot writes it.
        catalog: `sky.catalog`.
    """

    def __init__(self, infra: str, catalog: Any) -> None:
        cloud, _, region = infra.partition("/")
        self._cloud = cloud
        self._region = region.split("/")[0] or None
        self._catalog = catalog

    def offers(self, wanted: Iterable[Accelerators]) -> list[Offer]:
        """What is sold of some alternatives.

        Raises:
            RentalError: If the cloud has no such card at all.
        """
        return [self._offer(accelerators) for accelerators in wanted]

    def lowest(self, wanted: WantedNode) -> float | None:
        """Dollars an hour of the cheapest alternative; None if none is sold so."""
        return _cheapest(offer.price(wanted.spot) for offer in self.offers(wanted.accelerators))

    def _offer(self, wanted: Accelerators) -> Offer:
        listed = self._listed(f"^{re.escape(wanted.name)}$").get(wanted.name, [])
        if not listed:
            raise told(
                f"{self._cloud} rents no such accelerator.",
                key="accelerators",
                got=wanted.name,
                remedy=self._like(wanted.name),
            )
        nodes = [node for node in listed if node.accelerator_count == wanted.number]
        if not nodes:
            counts = ", ".join(f"{count:g}" for count in sorted({node.accelerator_count for node in listed}))
            raise told(
                f"{self._cloud} rents no node with so many.",
                key="accelerators",
                got=str(wanted),
                remedy=f"It has {counts}.",
            )
        memory = [node.memory for node in nodes if _is_price(node.memory)]
        return Offer(
            wanted,
            _cheapest(node.price for node in nodes),
            _cheapest(node.spot_price for node in nodes),
            min(memory, default=None),
        )

    def _listed(self, pattern: str | None) -> dict[str, list[Any]]:
        return self._catalog.list_accelerators(
            gpus_only=True,
            name_filter=pattern,
            region_filter=self._region,
            clouds=self._cloud,
            case_sensitive=True,
            all_regions=True,
        )

    def _like(self, name: str) -> str:
        known = list(self._listed(None))
        close = get_close_matches(name, known, n=3, cutoff=0.4)
        return f"It has {', '.join(close or known)}." if known else "Its catalogue is empty: run `sky check`."


def cheapest(offers: Iterable[Offer], wanted: WantedNode) -> float:
    """Dollars an hour of the cheapest alternative that may be rented.

    Raises:
        RentalError: If none may.
    """
    found = [price for offer in offers if (price := offer.price(wanted.spot)) is not None]
    if not found:
        sold = "as spot nodes" if wanted.spot else "on demand"
        raise told(f"None of the accelerators is sold {sold}.", key="accelerators", got=str(wanted))
    at_most = wanted.max_price_per_hour
    if at_most is not None and min(found) > at_most:
        remedy = f"Raise it to at least {min(found):.2f}, or name other accelerators."
        raise told(
            f"Nothing that a job wants costs less than ${at_most:g} an hour.",
            key="max-price-per-hour",
            got=f"{wanted}: ${min(found):.2f}",
            remedy=remedy,
        )
    return min(found)


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _cheapest(prices: Iterable[Any]) -> float | None:
    return min((float(price) for price in prices if _is_price(price)), default=None)
