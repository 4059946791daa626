"""Four short jobs, each on a node of its own and all on one that is kept: time, with the stand-in for RunPod.

Needs what the tests with pods need (tests/cloud/stand_in/README.md).

usage (in .venv-cloud, as root): python benchmarks/cloud_reuse.py [--jobs 4]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cloud.lab import TOKENS, Lab, why_not

IMAGE = Path.home() / ".cache/outlier-moe-cloud/image"
WORKFLOW = Path(__file__).parents[1] / "tests/cloud/workflow"


def seconds(lab: Lab, name: str, n_jobs: int, reuse: int) -> float:
    """How long a run takes, its nodes' end included."""
    folder = lab.folder / name
    shutil.copytree(WORKFLOW, folder)
    (folder / "data").mkdir()
    targets = [f"results/short-{number}.txt" for number in range(n_jobs)]
    prelude = f"export PATH={Path(sys.executable).parent}:$PATH"
    settings = ["--jobs", str(n_jobs), "--skypilot-reuse", str(reuse), "--skypilot-prelude", prelude]
    n_before, started = len(lab.events("created")), time.monotonic()
    driver = lab.snakemake(folder, *targets, *settings, **TOKENS)
    assert driver.wait(1800) == 0, driver.said
    took = time.monotonic() - started
    print(f"{name}: {took:.0f} s, {len(lab.events('created')) - n_before} nodes")
    return took


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
            seconds(lab, "warm-up", 1, reuse=0)
            kept, own = seconds(lab, "one-kept", n_jobs, reuse=1), seconds(lab, "own-nodes", n_jobs, reuse=0)
        finally:
            lab.stop()
    print(f"one kept node / a node each: {kept / own:.2f}")


if __name__ == "__main__":
    main()
