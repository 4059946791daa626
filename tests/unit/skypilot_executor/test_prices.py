"""Prices by the catalogue, and what is too dear."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode
from snakemake_executor_plugin_skypilot.preflight import Planned, expected_cost, price_per_hour, prices_per_hour
from snakemake_executor_plugin_skypilot.prices import Prices

A100, H100, B300 = Accelerators("A100-80GB", 1), Accelerators("H100-SXM", 1), Accelerators("B300", 1)


# Accelerator, how many, virtual CPUs, memory beside it, on demand, spot, region, zone.
ROWS = [
    ("A100-80GB", 1, 8.0, 117.0, 1.39, 1.19, "US", "US-KS-2"),
    ("A100-80GB", 1, 8.0, 117.0, 1.89, 1.59, "US", "US-TX-1"),
    ("A100-80GB", 1, 8.0, 117.0, 1.29, math.nan, "RO", "EU-RO-1"),
    ("A100-80GB", 8, 64.0, 936.0, 11.12, 9.52, "US", "US-KS-2"),
    ("H100-SXM", 1, 8.0, 125.0, 3.29, 0.99, "US", "US-KS-2"),
    ("B300", 1, 8.0, None, math.nan, 2.0, "US", "US-KS-2"),
    (None, None, 4.0, 8.0, 0.12, math.nan, "RO", "EU-RO-1"),
    (None, None, 4.0, 8.0, 0.16, math.nan, "US", "US-KS-2"),
    (None, None, 32.0, 64.0, 0.96, math.nan, "RO", "EU-RO-1"),
]


@pytest.fixture
def catalog(sky: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SkyPilot's catalogue, with a price list of its form for RunPod."""
    import pandas as pd  # pyright: ignore[reportMissingImports]
    from sky.catalog import runpod_catalog  # pyright: ignore[reportMissingImports]

    info = "{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]}"
    columns = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone"
    rows = [
        [f"{count}x_{name}_SECURE", *row, info] if name else [f"cpu5c-{n_cpus:g}", *row, None]
        for row in ROWS
        for name, count, n_cpus, *_ in [row]
    ]
    monkeypatch.setattr(runpod_catalog, "_df", pd.DataFrame(rows, columns=[*columns.split(","), "GpuInfo"]))
    return sky.catalog


@pytest.fixture
def prices(catalog: Any) -> Prices:
    """Prices of that catalogue."""
    return Prices("runpod", catalog)


def _wanted(*accelerators: Accelerators, spot: bool = False) -> WantedNode:
    return WantedNode(accelerators, 100, spot, 0)


def test_the_cheapest_place_and_alternative(prices: Prices) -> None:
    """Whatever is cheapest, and nan is no price."""
    assert price_per_hour("x", _wanted(A100, H100), prices) == 1.29
    assert price_per_hour("x", _wanted(A100, H100, spot=True), prices) == 0.99
    assert price_per_hour("x", _wanted(Accelerators("A100-80GB", 8)), prices) == 11.12
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


def test_region(catalog: Any) -> None:
    """Prices are of the region that is chosen."""
    assert price_per_hour("x", _wanted(A100), Prices("runpod/US", catalog)) == 1.39
    assert price_per_hour("x", _wanted(A100), Prices("runpod/us", catalog)) == 1.39
    assert price_per_hour("x", _wanted(A100), Prices(" RunPod/*/*/", catalog)) == 1.29


def _cpus(number: int, spot: bool = False, at_most: float | None = None) -> WantedNode:
    return WantedNode((), 100, spot, number, max_price_per_hour=at_most)


@pytest.mark.parametrize(
    ("infra", "wanted", "price"),
    [
        ("runpod", _cpus(4, at_most=0.12), 0.12),
        ("runpod/US", _cpus(4), 0.16),
        ("runpod", _cpus(5), 0.96),
        # SkyPilot takes one with accelerators if there is no other, or no other spot node within a cap.
        ("runpod", _cpus(33), 11.12),
        ("runpod/US/US-TX-1", _cpus(1), 1.89),
        ("runpod", _cpus(4, spot=True, at_most=3), 0.99),
    ],
)
def test_node_without_accelerator(catalog: Any, infra: str, wanted: WantedNode, price: float) -> None:
    """The price of what SkyPilot itself takes for so many CPUs."""
    assert price_per_hour("x", wanted, Prices(infra, catalog)) == price


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (_cpus(4, at_most=0.01), r"max-price-per-hour.*4 CPUs, 100 GB: \$0\.12.*at least 0\.12"),
        (_cpus(65), r"runpod has no node with so many CPUs.*threads.*65 CPUs in runpod.*fewer threads"),
        (_cpus(4, spot=True), "runpod has no such spot node.*key: spot.*4 CPUs in runpod.*spot=False"),
    ],
)
def test_no_node_without_accelerator(prices: Prices, wanted: WantedNode, said: str) -> None:
    """It is told before anything is rented."""
    with pytest.raises(WorkflowError, match=f"(?s)^make: .*{said}"):
        price_per_hour("make", wanted, prices)


def test_cost_of_jobs_without_accelerator(prices: Prices) -> None:
    """They count for the cap of the run."""
    jobs = [Planned("a", _cpus(32), 6000)]
    lines = expected_cost(jobs, prices, max_price_total=None)
    assert "for $96.00 (all on demand $96.00, all spot $96.00)" in lines[0]
    assert lines[1] == "  a: 32 CPUs, 100 GB, from $0.96 an hour, 6000 min: $96.00"
    with pytest.raises(WorkflowError, match=r"(?s)more than \$0\.01.*at least 96\.00"):
        expected_cost(jobs, prices, max_price_total=0.01)


def test_cloud_without_spot_nodes(catalog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its catalogue does not answer, but asserts."""

    def get_hourly_cost(_: str, *, use_spot: bool, **__: object) -> float:
        assert not use_spot
        return 1.5

    monkeypatch.setattr(catalog, "get_hourly_cost", get_hourly_cost)
    assert prices_per_hour("x", _cpus(4), Prices("runpod", catalog)) == {False: 1.5, True: 1.5}


@pytest.mark.parametrize("infra", ["runpod/US/US-TX-1", "runpod/*/US-TX-1"])
def test_zone(catalog: Any, infra: str) -> None:
    """Prices are of the zone that is chosen, not of its region's cheapest."""
    prices = Prices(infra, catalog)
    assert prices.offers([A100]) == [(A100, 1.89, 1.59, 117.0)]
    assert price_per_hour("x", _wanted(A100, spot=True), prices) == 1.59
    with pytest.raises(
        WorkflowError, match=r"(?s)^x: runpod rents no such.*H100-SXM:1 in runpod/US/US-TX-1.*have it: US"
    ):
        price_per_hour("x", _wanted(H100), prices)


@pytest.mark.parametrize("infra", ["nowhere", "nowhere/US", "local"])
def test_unknown_cloud(catalog: Any, infra: str) -> None:
    """Prices are the first that SkyPilot is asked for."""
    name = infra.partition("/")[0]
    with pytest.raises(WorkflowError, match=f"(?s)^SkyPilot knows no such cloud.*key: infra.*got: {name}.*runpod"):
        Prices(infra, catalog)


@pytest.mark.parametrize(
    ("infra", "said"),
    [
        ("runpod/XX", r"no such region.*got: runpod/XX.*regions are RO, US\."),
        ("runpod/S", "no such region"),
        ("runpod/ro/US-KS-2", r"no such zone.*got: runpod/ro/US-KS-2.*zones are EU-RO-1\."),
        ("runpod/*/XX-1", r"no such zone.*got: runpod/\*/XX-1.*zones are EU-RO-1, US-KS-2, US-TX-1\."),
    ],
)
def test_unknown_place(catalog: Any, infra: str, said: str) -> None:
    """It is the place's mistake, not that of all accelerators, and told once."""
    with pytest.raises(WorkflowError, match=f"(?s)^runpod has {said}") as caught:
        Prices(infra, catalog)
    assert "key: infra" in str(caught.value)


def test_accelerator_of_another_region(catalog: Any) -> None:
    """A card that is rented elsewhere is not unknown."""
    with pytest.raises(
        WorkflowError, match=r"(?s)^x: runpod rents no such .* there.*H100-SXM:1 in runpod/RO.*have it: US"
    ):
        price_per_hour("x", _wanted(H100), Prices("runpod/RO", catalog))


@pytest.mark.parametrize("infra", ["", "*", "*/US", "runpod//CA-MTL-1", "runpod/CA/CA-MTL-1/3"])
def test_no_place(catalog: Any, infra: str) -> None:
    """A price is that of a cloud."""
    with pytest.raises(WorkflowError, match=r"(?s)key: infra.*CLOUD/REGION"):
        Prices(infra, catalog)


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (None, None, r"could not be fetched.*got: ConnectionError: .*resolve.*remedy: .*network"),
        ("no such page", 404, r"could not be fetched.*got: HTTPError: 404.*network"),
        ("", 200, r"cannot be read.*got: EmptyDataError.*remedy: Remove ~/\.sky/catalogs"),
    ],
)
def test_no_catalogue(
    sky: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, status: int | None, said: str
) -> None:
    """A first use without network, or of a file that is none."""
    import requests  # pyright: ignore[reportMissingModuleSource]
    from sky.catalog import runpod_catalog  # pyright: ignore[reportMissingImports]

    def get(**_: object) -> requests.Response:
        if status is None:
            raise requests.ConnectionError("Failed to resolve a name\nand more")
        answer = requests.Response()
        answer.status_code, answer._content = status, (text or "").encode()
        return answer

    monkeypatch.setattr(requests, "get", get)
    common = sky.catalog.common
    monkeypatch.setattr(common, "_ABSOLUTE_VERSIONED_CATALOG_DIR", str(tmp_path))
    monkeypatch.setattr(runpod_catalog, "_df", common.read_catalog("runpod/vms.csv", pull_frequency_hours=7))
    with pytest.raises(WorkflowError, match=f"(?s)^SkyPilot's catalogue of prices {said}") as caught:
        Prices("runpod", sky.catalog)
    assert "and more" not in str(caught.value)


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
