"""Nodes that are taken away, or not to be had: their jobs run again, elsewhere and in the end on demand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cloud.lab import Lab, Start, wait_for

pytestmark = pytest.mark.pods

SLOW, MUCH = "results/counted-40.txt", "results/much-700.zeros"


def test_jobs_outlive_their_nodes(lab: Lab, folder: Path, start: Start) -> None:
    """Nodes are not to be had, and lost: while one is set up, while a job runs, and while its files come back."""
    n_before = len(lab.events("running"))
    lab.steer("refuse", n=4)
    # SkyPilot itself would wait without end for a pod that vanished while it booted.
    limits = ["--skypilot-max-recoveries", "5", "--skypilot-launch-minutes", "4"]
    driver = start(SLOW, MUCH, "--skypilot-use-spot", "--skypilot-resume-seconds", "3", *limits)
    # An answer that comes late, while a node is rented.
    lab.steer("break", n=1, seconds=15)
    wait_for(lambda: len(lab.events("running")) > n_before or not driver.is_running, seconds=300)
    lab.steer("preempt", id=lab.events("running")[-1]["id"])
    arriving = folder / ".snakemake/skypilot/arriving"
    comes = {
        "count_slowly": lambda: _counted(folder) >= 5,
        "make_much": lambda: any(arriving.glob("*/results/*much*")),
    }
    while driver.is_running:
        for rule in [rule for rule, has_come in comes.items() if has_come()]:
            # RunPod leaves an interrupted pod in its list, as EXITED, or takes it off.
            how = "exited" if rule == "count_slowly" else "gone"
            lab.steer("preempt", id=_pod_of(lab, folder, rule)["id"], how=how)
            del comes[rule]
        time.sleep(0.1)
    assert not comes, driver.said
    assert driver.wait() == 0, driver.all_said

    assert lab.pods == [] and len(lab.events("preempted")) == 2 and len(lab.events("exited")) == 1
    assert len((folder / SLOW).read_text().split()) == 40
    # It went on from what had come here.
    output = "".join(path.read_text() for path in (folder / ".snakemake/skypilot/logs/count_slowly").iterdir())
    assert int(output.split("goes on from ")[-1].split()[0]) >= 5
    assert (folder / MUCH).stat().st_size == 700 * 2**20
    assert not any(arriving.iterdir())


def _counted(folder: Path) -> int:
    state = folder / "state/40.txt"
    return len(state.read_text().split()) if state.exists() else 0


def _pod_of(lab: Lab, folder: Path, rule: str) -> dict[str, object]:
    """The pod on which a rule's job runs, by its node's name."""
    lines = [line for path in folder.glob("driver-*.log") for line in path.read_text().splitlines()]
    told = [line for line in lines if line.startswith(rule) and " runs on " in line]
    name = told[-1].split(" runs on ")[1].split()[0]
    return next(pod for pod in lab.pods if str(pod["name"]).startswith(name))
