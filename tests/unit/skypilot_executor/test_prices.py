"""Prices by the catalogue, and what is too dear."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode
from snakemake_executor_plugin_skypilot.preflight import Planned, expected_cost, price_per_hour
from snakemake_executor_plugin_skypilot.prices import Prices

A100, H100, B300 = Accelerators("A100-80GB", 1), Accelerators("H100-SXM", 1), Accelerators("B300", 1)


class _Catalog:
    """A catalogue that answers as SkyPilot's does, in its own type."""

    def __init__(self, sky: Any) -> None:
        make = sky.catalog.common.InstanceTypeInfo
        rows = [
            ("A100-80GB", 1, 117.0, 1.39, 1.19, "US"),
            ("A100-80GB", 1, 117.0, 1.29, math.nan, "RO"),
            ("A100-80GB", 8, 936.0, 11.12, 9.52, "US"),
            ("H100-SXM", 1, 125.0, 3.29, 0.99, "US"),
            ("B300", 1, None, math.nan, 2.0, "US"),
        ]
        self._found: dict[str, list[Any]] = defaultdict(list)
        for name, count, memory, price, spot, region in rows:
            self._found[name].append(
                make("RunPod", f"{count}x_{name}", name, count, 8, 80, memory, price, spot, region)
            )
        self.regions: list[str | None] = []

    def list_accelerators(
        self, *, name_filter: str | None, region_filter: str | None, **_: Any
    ) -> dict[str, list[Any]]:
        self.regions.append(region_filter)
        return {name: found for name, found in self._found.items() if re.search(name_filter or "", name)}


@pytest.fixture
def prices(sky: Any) -> Prices:
    """Prices of that catalogue."""
    return Prices("runpod", _Catalog(sky))


def _wanted(*accelerators: Accelerators, spot: bool = False) -> WantedNode:
    return WantedNode(accelerators, 100, spot, 0)


def test_the_cheapest_place_and_alternative(prices: Prices) -> None:
    """Whatever is cheapest, and nan is no price."""
    assert price_per_hour("x", _wanted(A100, H100), prices) == 1.29
    assert price_per_hour("x", _wanted(A100, H100, spot=True), prices) == 0.99
    assert price_per_hour("x", _wanted(Accelerators("A100-80GB", 8)), prices) == 11.12
    assert price_per_hour("x", WantedNode((), 100, False, 4, max_price_per_hour=0.01), prices) == 0.0
    (offer,) = prices.offers([A100])
    assert (offer.on_demand, offer.spot, offer.memory_gb) == (1.29, 1.19, 117.0)


@pytest.mark.parametrize(
    ("wanted", "at_most", "said"),
    [
        (_wanted(Accelerators("A100-80G", 1)), None, r"rents no such accelerator.*got: A100-80G\b.*It has A100-80GB"),
        (_wanted(Accelerators("a100-80gb", 1)), None, "It has A100-80GB"),
        (_wanted(Accelerators("A100-80GB", 3)), None, "It has 1, 8"),
        (_wanted(A100, Accelerators("XYZ", 1)), None, "got: XYZ"),
        (_wanted(B300), None, "sold on demand"),
        (_wanted(A100), 1.0, r"max-price-per-hour.*\$1\.29.*at least 1\.29"),
    ],
)
def test_what_cannot_be_rented(prices: Prices, wanted: WantedNode, at_most: float | None, said: str) -> None:
    """The message names the job, what is wrong with its node, and the remedy."""
    with pytest.raises(WorkflowError, match=f"(?s)^evaluate: .*{said}"):
        price_per_hour("evaluate", wanted._replace(max_price_per_hour=at_most), prices)


def test_region(sky: Any) -> None:
    """Prices are of the region that is chosen."""
    catalog = _Catalog(sky)
    Prices("runpod/CA/CA-MTL-1", catalog).offers([A100])
    Prices("runpod", catalog).offers([A100])
    assert catalog.regions == ["CA", None]


def test_expected_cost(prices: Prices) -> None:
    """A line for each job, and the sum; above the cap nothing starts."""
    jobs = [Planned("a", _wanted(A100), 120), Planned("b", _wanted(H100), 0), Planned("c", _wanted(H100), 60)]
    lines = expected_cost(jobs, prices, max_price_total=10)
    assert (
        lines[0]
        == "To be rented, if all goes as expected, for $5.87 of at most $10 (all on demand $5.87, all spot $3.37):"
    )
    assert lines[1] == "  a: A100-80GB:1, 100 GB, from $1.29 an hour, 120 min: $2.58"
    assert lines[2] == "  b: H100-SXM:1, 100 GB, from $3.29 an hour"
    with pytest.raises(WorkflowError, match=r"(?s)more than \$5.*at least 5\.87"):
        expected_cost(jobs, prices, max_price_total=5)
