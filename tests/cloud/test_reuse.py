"""Many jobs on one node that is kept, some of which go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cloud.lab import Lab, Start, wait_for

pytestmark = pytest.mark.pods

SHORT = [f"results/short-{number}.txt" for number in range(4)]


def test_one_node_for_all(lab: Lab, folder: Path, start: Start) -> None:
    """Jobs that succeed, fail, fill the disk or lose their connection share a node; the API breaks now and then."""
    n_before = len(lab.events("created"))
    wanted = [*SHORT, "results/failed.txt", "results/full/big.bin", "results/counted-45.txt"]
    driver = start(*wanted, "--skypilot-reuse", "1", "--keep-going", "--skypilot-idle-minutes", "10")
    driver.wait_until("rule work_shortly")
    # While the node is rented: it is tried again.
    lab.steer("break", n=1, status=500)
    wait_for(lambda: _output_has(folder, "goes on from 0"), seconds=600)
    lab.steer("cut", id=lab.pods[0]["id"], seconds=25)
    assert driver.wait() == 1, driver.said

    assert len(lab.events("created")) == n_before + 1, lab.events("created")
    assert lab.pods == []
    assert len({(folder / path).read_text() for path in SHORT}) == 1
    assert len((folder / "results/counted-45.txt").read_text().split()) == 45
    assert len(lab.events("cut")) == 1 and len(lab.events("broke")) == 1

    # What went wrong is told where Snakemake tells it, and its log is here.
    assert "its last words" in driver.said and "No space left on device" in driver.said
    assert (folder / "logs/failed.log").read_text() == "what it noted\n"
    assert not (folder / "results/failed.txt").exists() and not (folder / "results/full").exists()


def _output_has(folder: Path, text: str) -> bool:
    return any(text in path.read_text() for path in (folder / ".snakemake/skypilot/logs").rglob("*.log"))
