"""What a rule's resources ask for."""

from __future__ import annotations

import pytest
from snakemake.common.tbdstring import TBDString
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.nodes_wanted import (
    Accelerators,
    WantedNode,
    parse_accelerators,
    refuse_undecided,
    strictest,
    undecided,
    wanted_node,
)
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A100-80GB", [("A100-80GB", 1)]),
        ("A100-80GB:2", [("A100-80GB", 2)]),
        (" A100-80GB : 1 , H100-SXM:8 ", [("A100-80GB", 1), ("H100-SXM", 8)]),
        ("L4,L4:1,L4", [("L4", 1)]),
    ],
)
def test_accelerators(text: str, expected: list[tuple[str, int]]) -> None:
    """Alternatives by comma, in their order, each once."""
    assert parse_accelerators(text, key="x") == tuple(Accelerators(*each) for each in expected)


@pytest.mark.parametrize("text", ["", ",", "A100:", "A100:0", "A100:-1", "A100:1.5", "8", "A100 H100", "A100:1,", 3])
def test_unreadable_accelerators(text: object) -> None:
    """The message shows what was written, where, and the form."""
    with pytest.raises(WorkflowError, match=r"(?s)cannot be read.*key: resources\.accelerators.*A100-80GB:1,H100"):
        parse_accelerators(text, key="resources.accelerators of x")


def test_resources_come_before_settings() -> None:
    """A rule's own word holds; where it says nothing the settings do."""
    settings = ExecutorSettings(accelerators="L4:1", use_spot=True, disk_size=70)
    assert wanted_node({}, 3, settings, job="x") == WantedNode((Accelerators("L4", 1),), 70, True, 0)
    own = {"accelerators": "H100-SXM:2", "disk_gb": 900, "spot": "false", "idle_minutes": 4}
    assert wanted_node(own, 3, settings, job="x") == WantedNode((Accelerators("H100-SXM", 2),), 900, False, 0, 4)


@pytest.mark.parametrize(
    ("own", "all_jobs", "lowest"), [(2.5, 4.0, 2.5), (5, 4.0, 4.0), (None, 4.0, 4.0), (2.5, None, 2.5)]
)
def test_the_lower_price_cap_holds(own: float | None, all_jobs: float | None, lowest: float) -> None:
    """A rule may be thriftier than the settings, and not the other way round."""
    settings = ExecutorSettings(max_price_per_hour=all_jobs)
    resources = {} if own is None else {"max_price_per_hour": own}
    assert wanted_node(resources, 1, settings, job="x").max_price_per_hour == lowest


def test_node_without_accelerators() -> None:
    """It has as many processors as the job has threads."""
    wanted = wanted_node({}, 6, ExecutorSettings(), job="x")
    assert wanted == WantedNode((), 100, False, 6)
    assert str(wanted) == "6 CPUs, 100 GB"


@pytest.mark.parametrize(
    "resources",
    [
        {"disk_gb": 0},
        {"disk_gb": "many"},
        {"disk_gb": 1.5},
        {"spot": "perhaps"},
        {"idle_minutes": 0},
        {"max_price_per_hour": -1.0},
    ],
)
def test_wrong_resources(resources: dict[str, object]) -> None:
    """The message names the resource and the job."""
    with pytest.raises(WorkflowError, match=f"resources.{next(iter(resources))} of evaluate"):
        wanted_node(resources, 1, ExecutorSettings(), job="evaluate")


def test_resources_that_depend_on_files_to_come() -> None:
    """Those that say what a node is are named; accelerators in particular are not taken for none."""
    resources = {"disk_gb": TBDString(), "accelerators": TBDString(), "spot": True, "tmpdir": TBDString()}
    assert undecided(resources) == ["accelerators", "disk_gb"]
    with pytest.raises(WorkflowError, match=r"(?s)not there.*resources\.accelerators of evaluate"):
        refuse_undecided(resources, job="evaluate")
    refuse_undecided({"disk_gb": 3}, job="evaluate")


def test_limits_of_a_group_are_not_added_up() -> None:
    """The strictest holds; what nobody limits has none."""
    members = [{"max_price_per_hour": 3.0, "idle_minutes": 5}, {"max_price_per_hour": 2.0}, {}]
    assert strictest(members) == {"max_price_per_hour": 2.0, "idle_minutes": 5}
    assert strictest([{}, {}]) == {}
