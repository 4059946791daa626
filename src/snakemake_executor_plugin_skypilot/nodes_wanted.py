"""The node that a job wants: its rule's resources, and the settings where they say nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from snakemake_executor_plugin_skypilot.errors import rental_error
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings

EXAMPLE = "Write it as accelerators='A100-80GB:1,H100-SXM:1': alternatives by comma, each NAME or NAME:COUNT."
# Resources that say how much something may be.
LIMITS = ("idle_minutes", "max_price_per_hour")
TRUE, FALSE = {"true", "yes", "1"}, {"false", "no", "0"}
# What Snakemake writes for a resource that depends on files that are not there yet.
TBD = "<TBD>"
# The resources that say what node a job wants.
SAID = ("accelerators", "disk_gb", "spot", "idle_minutes", "max_price_per_hour")


class Accelerators(NamedTuple):
    """Some cards of a kind."""

    name: str
    """As SkyPilot calls it."""
    number: int
    """How many in the node."""

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


class WantedNode(NamedTuple):
    """What a node has to have."""

    accelerators: tuple[Accelerators, ...]
    """Alternatives; none: a node without accelerator."""
    disk_gb: int
    """Its disk."""
    spot: bool
    """Whether it may be taken away."""
    cpus: int
    """Processors at least, where it has no accelerator."""
    idle_minutes: int = 10
    """After how many minutes without a job it ends itself."""
    max_price_per_hour: float | None = None
    """Dollars beyond which it is not rented."""

    @property
    def kind(self) -> tuple[tuple[Accelerators, ...], bool, int]:
        """What a node must have in common with another to take its jobs, its disk aside."""
        return self.accelerators, self.spot, self.cpus

    def __str__(self) -> str:
        cards = " or ".join(map(str, self.accelerators)) or f"{self.cpus} CPUs"
        return f"{cards}, {self.disk_gb} GB{', spot' if self.spot else ''}"


def undecided(resources: Mapping[str, Any]) -> list[str]:
    """Those of a job's resources for its node that depend on files that are not there yet."""
    return [name for name in SAID if resources.get(name) == TBD]


def refuse_undecided(resources: Mapping[str, Any], *, job: str) -> None:
    """Refuse a job whose node cannot be told even now that it is to run.

    Raises:
        RentalError: If a resource depends on a file that is not there.
    """
    for name in undecided(resources):
        remedy = "Let it depend on no file that another job of its group makes."
        raise rental_error(
            "A resource depends on a file that is not there.", key=f"resources.{name} of {job}", remedy=remedy
        )


def wanted_node(resources: Mapping[str, Any], threads: int, settings: ExecutorSettings, *, job: str) -> WantedNode:
    """The node of a job.

    Args:
        resources: The job's resources.
        threads: Its threads.
        settings: What holds where it has no such resource.
        job: Its name, for messages.

    Raises:
        RentalError: If a resource is of the wrong form.
    """
    said = resources.get("accelerators") or settings.accelerators
    accelerators = parse_accelerators(said, key=f"resources.accelerators of {job}") if said else ()
    return WantedNode(
        accelerators=accelerators,
        disk_gb=_whole(resources.get("disk_gb", settings.disk_size), key=f"resources.disk_gb of {job}"),
        spot=_truth(resources.get("spot", settings.use_spot), key=f"resources.spot of {job}"),
        cpus=0 if accelerators else max(1, threads),
        idle_minutes=_whole(
            resources.get("idle_minutes", settings.idle_minutes), key=f"resources.idle_minutes of {job}"
        ),
        max_price_per_hour=_lowest(
            resources.get("max_price_per_hour"),
            settings.max_price_per_hour,
            key=f"resources.max_price_per_hour of {job}",
        ),
    )


def strictest(resources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The limits that some jobs set, the lowest of each."""
    said = list(resources)
    values = {name: [each[name] for each in said if each.get(name) is not None] for name in LIMITS}
    return {name: min(found) for name, found in values.items() if found}


def parse_accelerators(text: object, *, key: str) -> tuple[Accelerators, ...]:
    """Alternatives such as `A100-80GB:1,H100-SXM:1`, each once.

    Args:
        text: What was written.
        key: Where, for messages.

    Raises:
        RentalError: If it is of another form.
    """
    alternatives = []
    for part in str(text).split(","):
        found = re.fullmatch(r"\s*([A-Za-z][\w.-]*)\s*(?::\s*([1-9]\d*)\s*)?", part)
        if found is None:
            raise rental_error("Accelerators cannot be read.", key=key, got=text, remedy=EXAMPLE)
        alternatives.append(Accelerators(found.group(1), int(found.group(2) or 1)))
    return tuple(dict.fromkeys(alternatives))


def _whole(value: object, *, key: str) -> int:
    if isinstance(value, int) and value > 0:
        return value
    raise rental_error("It is no whole number above 0.", key=key, got=value)


def _lowest(*prices: object, key: str) -> float | None:
    said = [price for price in prices if price is not None]
    if any(not isinstance(price, int | float) or price <= 0 for price in said):
        raise rental_error("It is no price above 0.", key=key, got=said)
    return min((float(str(price)) for price in said), default=None)


def _truth(value: object, *, key: str) -> bool:
    said = str(value).lower()
    if said not in TRUE | FALSE:
        raise rental_error("It is neither true nor false.", key=key, got=value, remedy="Write true or false.")
    return said in TRUE
