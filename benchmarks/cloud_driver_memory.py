"""Peak memory of Snakemake with the executor while many jobs run at once, with SkyPilot itself and without nodes.

All is real but what SkyPilot is asked to do: its functions wait in each job's thread as long as a job would.

usage (in .venv-cloud): python benchmarks/cloud_driver_memory.py [--jobs 23] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from snakemake.cli import main as snakemake

from snakemake_executor_plugin_skypilot import preflight
from snakemake_executor_plugin_skypilot.cloud import Cloud, Submitted

SNAKEFILE = """
rule all:
    input: expand("out/{{n}}.txt", n=range({n_jobs}))

rule make:
    output: "out/{{n}}.txt"
    shell: "true"
"""


def main() -> None:
    """Run the jobs and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=23)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which a job runs")
    chosen = parser.parse_args()

    def follow(*_: object, **__: object) -> bool:
        time.sleep(chosen.seconds)
        return True

    def bring(_: Cloud, __: str, paths: list[str], into: Path) -> None:
        for path in paths:
            (into / path).parent.mkdir(exist_ok=True)
            (into / path).touch()

    replaced = {
        "launch": lambda *_: Submitted(1, "a node", 1.0),
        "follow": follow,
        "bring": bring,
        "end": lambda *_: None,
        "nodes": lambda *_, **__: [],
    }
    with tempfile.TemporaryDirectory() as folder, patch.multiple(Cloud, **replaced):
        os.chdir(folder)
        Path("Snakefile").write_text(SNAKEFILE.format(n_jobs=chosen.jobs))
        arguments = ["--executor", "skypilot", "--jobs", str(chosen.jobs), "--local-cores", "1", "--quiet", "all"]
        started = time.monotonic()
        with patch.object(preflight, "check_access"):
            try:
                snakemake(arguments)
            except SystemExit as ended:
                if ended.code:
                    raise
        seconds = time.monotonic() - started
        n_made = len(list(Path("out").iterdir()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{n_made} jobs at once, {seconds:.0f} s: {peak:.0f} MiB at most", file=sys.stderr)


if __name__ == "__main__":
    main()
