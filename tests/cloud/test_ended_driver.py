"""However Snakemake ends, no node outlives its idle limit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cloud.lab import Lab, Start, wait_for

pytestmark = pytest.mark.pods

LONG, SHORT = "results/counted-3600.txt", "results/counted-20.txt"
# The idle limit is a minute, and the node looks at it twice a minute.
IDLE_LIMIT_S = 240


def test_interrupted(lab: Lab, folder: Path, start: Start) -> None:
    """SIGTERM while a job runs, Ctrl-C while a node is set up: all nodes are gone when Snakemake is."""
    driver = start(LONG)
    driver.wait_until("runs on")
    driver.signal(signal.SIGTERM)
    assert driver.wait(180) != 0
    assert lab.pods == [], driver.said

    driver = start(SHORT)
    driver.wait_until("To be rented")
    n_before = len(lab.events("created"))
    wait_for(lambda: len(lab.events("created")) > n_before or not driver.is_running, seconds=300)
    driver.signal(signal.SIGINT)
    assert driver.wait(180) != 0
    assert lab.pods == [], driver.said


@pytest.mark.parametrize("answered_after_s", [15, 45])
def test_interrupted_while_a_pod_is_asked_for(lab: Lab, folder: Path, start: Start, answered_after_s: int) -> None:
    """A pod that RunPod makes of a request that was broken off by Ctrl-C is ended, too.

    SkyPilot's library waits 30 s for an answer. Of what comes later the run's own end knows nothing: the next run does.
    """
    lab.steer("late", seconds=answered_after_s)
    n_asked, n_created = len(lab.events("asked")), len(lab.events("created"))
    driver = start(SHORT)
    wait_for(lambda: len(lab.events("asked")) > n_asked or not driver.is_running, seconds=120)
    driver.signal(signal.SIGINT)
    assert driver.wait(180) != 0
    wait_for(lambda: len(lab.events("created")) > n_created, seconds=60)
    if lab.pods:
        assert answered_after_s > 30, driver.said
        later = start("results/short-1.txt", "--skypilot-end-orphans")
        later.wait_until("Ending nodes that earlier runs left")
        later.signal(signal.SIGINT)
        assert later.wait(180) != 0
    assert lab.pods == []


def test_killed(lab: Lab, folder: Path, start: Start) -> None:
    """SIGKILL: the node ends itself some time after its job; a run that starts before that names it."""
    driver = start(SHORT)
    driver.wait_until("runs on")
    name = driver.said.split(" runs on ")[1].split()[0]
    driver.signal(signal.SIGKILL)
    driver.wait()

    # The lock of a folder whose Snakemake was killed.
    second = start("results/short-1.txt", "--unlock")
    assert second.wait() == 0, second.said
    second = start("results/short-1.txt", "--rerun-incomplete")
    second.wait_until("Earlier runs left nodes")
    second.signal(signal.SIGINT)
    assert second.wait(180) != 0
    assert name in second.said
    assert [pod for pod in lab.pods if not str(pod["name"]).startswith(name)] == [], second.said
    lab.wait_for_no_pod(IDLE_LIMIT_S)
    assert lab.events("terminated")[-1]["by"].startswith("10.77."), "The node itself ended it."


def test_kept(lab: Lab, folder: Path, start: Start) -> None:
    """A node that is kept running on purpose stays, until a later run is told to end it."""
    driver = start("results/short-1.txt", "--skypilot-keep-running")
    assert driver.wait() == 0, driver.all_said
    assert "cost money" in driver.said
    (kept,) = lab.pods

    driver = start("results/short-2.txt", "--skypilot-end-orphans")
    wait_for(lambda: lab.pods and lab.pods[0]["id"] != kept["id"] or not driver.is_running, seconds=300)
    assert "Ending nodes that earlier runs left" in driver.said
    driver.signal(signal.SIGTERM)
    assert driver.wait(180) != 0
    assert lab.pods == [], driver.said
