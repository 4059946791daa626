"""Four short jobs, each on a node of its own and all on one that is kept: time, with the stand-in for RunPod.

Of each job also what the executor takes beside SkyPilot: from having a node in mind until SkyPilot is asked for it, and
from the end of the job's output, as SkyPilot tells it, until the job's files are in their places.

Needs what the tests with pods need (tests/cloud/stand_in/README.md).

usage (in .venv-cloud, as root): python benchmarks/cloud_reuse.py [--jobs 4]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cloud.lab import TOKENS, Lab, why_not

IMAGE = Path.home() / ".cache/outlier-moe-cloud/image"
WORKFLOW = Path(__file__).parents[1] / "tests/cloud/workflow"
# Requests by name, cluster, begin and end, in seconds since 1970.
REQUESTS = """
import json, sky
requests = sky.api_status(all_status=True)
print(json.dumps([[each.name, each.cluster_name, each.created_at, each.finished_at] for each in requests]))
"""


class Taken(NamedTuple):
    """What a run took."""

    wall_s: float
    """From its start until its nodes were gone."""
    rented_s: float
    """The nodes' time together, which is what is paid for."""


def run(lab: Lab, name: str, n_jobs: int, reuse: int) -> Taken:
    """A run of short jobs; says what each took beside SkyPilot."""
    folder = lab.folder / name
    shutil.copytree(WORKFLOW, folder)
    (folder / "data").mkdir()
    targets = [f"results/short-{number}.txt" for number in range(n_jobs)]
    prelude = f"export PATH={Path(sys.executable).parent}:$PATH"
    settings = ["--jobs", str(n_jobs), "--skypilot-reuse", str(reuse), "--skypilot-prelude", prelude]
    n_before, started = len(lab.events("created")), time.monotonic()
    driver = lab.snakemake(folder, *targets, *settings, **TOKENS)
    assert driver.wait(1800) == 0, driver.all_said
    wall_s = time.monotonic() - started
    rents = [json.loads(line) for line in (folder / ".snakemake/skypilot/costs.jsonl").read_text().splitlines()]
    taken = Taken(wall_s, sum(rent["ended"] - rent["started"] for rent in rents))
    n_nodes = len(lab.events("created")) - n_before
    print(f"{name}: {taken.wall_s:.0f} s, {n_nodes} nodes for {taken.rented_s:.0f} s together")
    for job, before, after in beside_skypilot(lab, rents):
        print(f"  {job}: {before:.1f} s before SkyPilot is asked, {after:.1f} s after it told the end")
    return taken


def beside_skypilot(lab: Lab, rents: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """What the executor took of each job's time itself, before and after SkyPilot's share."""
    told = subprocess.run([sys.executable, "-c", REQUESTS], env=lab.environment, capture_output=True, text=True)
    requests = json.loads(told.stdout.splitlines()[-1])

    def of(rent: dict[str, Any], names: tuple[str, ...], at: int) -> list[float]:
        times = [request[at] for request in requests if request[0] in names and request[1] == rent["node"]]
        return sorted(time for time in times if time and rent["started"] <= time <= rent["ended"])

    return [
        (
            rent["job"],
            of(rent, ("sky.launch", "sky.exec"), 2)[0] - rent["started"],
            rent["ended"] - of(rent, ("sky.logs",), 3)[-1],
        )
        for rent in rents
        if rent["outcome"] == "succeeded"
    ]


def main() -> None:
    """Measure both, after a run that starts SkyPilot's server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4)
    n_jobs = parser.parse_args().jobs
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="cloud-lab-", dir="/var/tmp") as folder:
        lab = Lab(Path(folder), IMAGE)
        lab.start()
        try:
            run(lab, "warm-up", 1, reuse=0)
            kept, own = run(lab, "one-kept", n_jobs, reuse=1), run(lab, "own-nodes", n_jobs, reuse=0)
        finally:
            lab.stop()
    print(
        f"one kept node / a node each: {kept.wall_s / own.wall_s:.2f} of the time, "
        f"{kept.rented_s / own.rented_s:.2f} of the rent"
    )


if __name__ == "__main__":
    main()
