"""What nodes cost, by SkyPilot's catalogue, and what a run is going to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NamedTuple

from snakemake_executor_plugin_skypilot.errors import RentalError, first_line, rental_error
from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode

CATALOGUES = "~/.sky/catalogs"


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


class Place(NamedTuple):
    """Where nodes are rented."""

    cloud: str
    """As SkyPilot calls it, in small letters."""
    region: str | None
    """None: any."""
    zone: str | None
    """None: any."""

    def __str__(self) -> str:
        region = self.region or ("*" if self.zone else None)
        return "/".join(filter(None, [self.cloud, region, self.zone]))


def place_of(infra: str) -> Place:
    """A place as SkyPilot writes it: a cloud, or one with region and zone.

    Raises:
        RentalError: If it names no cloud.
    """
    parts = [part.strip() for part in infra.strip().strip("/").split("/")]
    if not all(parts) or parts[0] == "*" or len(parts) > 3:
        remedy = "Write CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE, such as runpod/CA/CA-MTL-1."
        raise rental_error("It names no cloud.", key="infra", got=infra, remedy=remedy)
    region, zone = (None if part == "*" else part for part in [*parts[1:], "*", "*"][:2])
    return Place(parts[0].lower(), region, zone)


def known_cloud(name: str) -> Any:
    """What SkyPilot knows of a cloud: one of `sky.clouds`.

    Raises:
        RentalError: If it knows none of that name.
    """
    from sky.utils.registry import CLOUD_REGISTRY  # pyright: ignore[reportMissingImports]

    with suppress(ValueError):
        if (cloud := CLOUD_REGISTRY.from_str(name)) is not None:
            return cloud
    remedy = f"It knows {', '.join(sorted(CLOUD_REGISTRY))}."
    raise rental_error("SkyPilot knows no such cloud.", key="infra", got=name, remedy=remedy)


class Prices:
    """The catalogue of a cloud, which SkyPilot keeps in this account and renews every few hours.

    Args:
        infra: Where, as SkyPilot writes it.
        catalog: `sky.catalog`.

    Raises:
        RentalError: If SkyPilot knows no such place, or has no prices.
    """

    def __init__(self, infra: str, catalog: Any) -> None:
        self._place = place_of(infra)
        self._catalog = catalog
        self._nodes = self._read()
        self._place = self._checked()

    def offers(self, wanted: Iterable[Accelerators]) -> list[Offer]:
        """What is sold of some alternatives.

        Raises:
            RentalError: If the cloud has no such card at all.
        """
        return [self._offer(accelerators) for accelerators in wanted]

    def lowest(self, wanted: WantedNode) -> float | None:
        """Dollars an hour of the cheapest alternative, however dear; None if none is sold so."""
        if not wanted.accelerators:
            return self._of_default_node(wanted._replace(max_price_per_hour=None))
        return _least(offer.price(wanted.spot) for offer in self.offers(wanted.accelerators))

    def of_cpus(self, wanted: WantedNode) -> float:
        """Dollars an hour of what SkyPilot rents for a job without accelerators: it may have some, if it is cheaper.

        Raises:
            RentalError: If it rents none, or none that costs so little.
        """
        price = self._of_default_node(wanted) or self.lowest(wanted)
        if price is not None:
            return _within_cap(price, wanted)
        got = f"{wanted.cpus} CPUs in {self._place}"
        if wanted.spot and self.lowest(wanted._replace(spot=False)) is not None:
            remedy = "Give the rule spot=False, or accelerators."
            raise rental_error(f"{self._place.cloud} has no such spot node.", key="spot", got=got, remedy=remedy)
        remedy = "Give the rule fewer threads, or accelerators."
        raise rental_error(f"{self._place.cloud} has no node with so many CPUs.", key="threads", got=got, remedy=remedy)

    def _of_default_node(self, wanted: WantedNode) -> float | None:
        """What SkyPilot itself takes where only CPUs are asked for."""
        there = {"region": self._place.region, "zone": self._place.zone, "clouds": self._place.cloud}
        try:
            found = self._catalog.get_default_instance_type(
                cpus=f"{wanted.cpus}+", use_spot=wanted.spot, max_hourly_cost=wanted.max_price_per_hour, **there
            )
            return None if found is None else self._catalog.get_hourly_cost(found, use_spot=wanted.spot, **there)
        # There is no such price; clouds that have no spot nodes at all assert that none is asked for.
        except (ValueError, AssertionError):
            return None

    def _read(self) -> dict[str, list[Any]]:
        """Every node with accelerators that the cloud rents, by the name of those: read once, as it takes a while."""
        try:
            return self._catalog.list_accelerators(gpus_only=True, clouds=self._place.cloud, all_regions=True)
        except ValueError as error:
            known_cloud(self._place.cloud)
            remedy = f"Remove {CATALOGUES}: SkyPilot fetches it anew."
            raise rental_error(
                "SkyPilot's catalogue of prices cannot be read.", got=first_line(error), remedy=remedy
            ) from None
        except OSError as error:
            remedy = f"Try again with a network: SkyPilot keeps it in {CATALOGUES}, and then needs none for prices."
            raise rental_error(
                "SkyPilot's catalogue of prices could not be fetched.", got=first_line(error), remedy=remedy
            ) from None

    def _checked(self) -> Place:
        """The place as the catalogue writes it."""
        cloud, region, zone = self._place
        try:
            return Place(cloud, *self._catalog.validate_region_zone(region, zone, clouds=cloud))
        except ValueError as error:
            regions = sorted({node.region for nodes in self._nodes.values() for node in nodes})
            if region is not None and region.lower() not in map(str.lower, regions):
                what, known = "region", regions
            else:
                what, known = "zone", self._zones(region)
            remedy = f"Its {what}s are {', '.join(known)}." if known else first_line(error)
            raise rental_error(f"{cloud} has no such {what}.", key="infra", got=self._place, remedy=remedy) from None

    def _zones(self, region: str | None) -> list[str]:
        nodes = [node for nodes in self._nodes.values() for node in nodes]
        return sorted(
            {
                zone.name
                for instance_type in {node.instance_type for node in nodes}
                for found in self._catalog.get_region_zones_for_instance_type(
                    instance_type, False, clouds=self._place.cloud
                )
                if region is None or found.name.lower() == region.lower()
                for zone in found.zones or ()
            }
        )

    def _offer(self, wanted: Accelerators) -> Offer:
        everywhere = self._nodes.get(wanted.name, [])
        if not everywhere:
            raise rental_error(
                f"{self._place.cloud} rents no such accelerator.",
                key="accelerators",
                got=wanted.name,
                remedy=self._like(wanted.name),
            )
        listed = [node for node in everywhere if self._place.region in (None, node.region)]
        if not listed:
            raise self._not_there(wanted, everywhere)
        nodes = [node for node in listed if node.accelerator_count == wanted.number]
        if not nodes:
            counts = ", ".join(f"{count:g}" for count in sorted({node.accelerator_count for node in listed}))
            raise rental_error(
                f"{self._place.cloud} rents no node with so many.",
                key="accelerators",
                got=str(wanted),
                remedy=f"It has {counts}.",
            )
        sold = [offer for node in nodes if (offer := self._sold(node, wanted)) is not None]
        if not sold:
            raise self._not_there(wanted, nodes)
        return Offer(
            wanted,
            _least(offer.on_demand for offer in sold),
            _least(offer.spot for offer in sold),
            _least(offer.memory_gb for offer in sold),
        )

    def _sold(self, node: Any, wanted: Accelerators) -> Offer | None:
        """One of the catalogue's nodes at the place's prices; None if its zone has none."""
        if self._place.zone is None:
            return Offer(wanted, node.price, node.spot_price, node.memory)
        on_demand, spot = (self._in_zone(node.instance_type, wanted, spot) for spot in (False, True))
        return None if on_demand is None and spot is None else Offer(wanted, on_demand, spot, node.memory)

    def _in_zone(self, instance_type: str, wanted: Accelerators, spot: bool) -> float | None:
        """Dollars an hour, which the catalogue's list of accelerators has of regions alone."""
        cloud, place = known_cloud(self._place.cloud), {"region": self._place.region, "zone": self._place.zone}
        try:
            node = cloud.instance_type_to_hourly_cost(instance_type, spot, **place)
            # None on most clouds: GCP sells them apart.
            return node + cloud.accelerators_to_hourly_cost({wanted.name: wanted.number}, spot, **place)
        except ValueError:
            return None

    def _not_there(self, wanted: Accelerators, elsewhere: Iterable[Any]) -> RentalError:
        regions = ", ".join(sorted({node.region for node in elsewhere}))
        return rental_error(
            f"{self._place.cloud} rents no such accelerator there.",
            key="accelerators",
            got=f"{wanted} in {self._place}",
            remedy=f"Regions that have it: {regions}.",
        )

    def _like(self, name: str) -> str:
        close = get_close_matches(name, self._nodes, n=3, cutoff=0.4)
        known = ", ".join(close or self._nodes)
        return f"It has {known}." if known else "Its catalogue is empty: run `sky check`."


def cheapest(offers: Iterable[Offer], wanted: WantedNode) -> float:
    """Dollars an hour of the cheapest alternative that may be rented.

    Raises:
        RentalError: If none may.
    """
    found = [price for offer in offers if (price := offer.price(wanted.spot)) is not None]
    if not found:
        sold = "as spot nodes" if wanted.spot else "on demand"
        raise rental_error(f"None of the accelerators is sold {sold}.", key="accelerators", got=str(wanted))
    return _within_cap(min(found), wanted)


def _within_cap(price: float, wanted: WantedNode) -> float:
    at_most = wanted.max_price_per_hour
    if at_most is not None and price > at_most:
        raise rental_error(
            f"Nothing that a job wants costs less than ${at_most:g} an hour.",
            key="max-price-per-hour",
            got=f"{wanted}: ${price:.2f}",
            remedy=f"Raise it to at least {price:.2f}, or name other accelerators.",
        )
    return price


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _least(values: Iterable[Any]) -> float | None:
    return min((float(value) for value in values if _is_number(value)), default=None)
