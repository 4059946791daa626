"""profiles/slurm, on Debian's own Slurm: one recording as a job of a cluster of one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.lab import STAND_IN
from tests.workflow.study_folder import ROOT, make_study

pytest.importorskip("snakemake_executor_plugin_slurm", reason="wants the extra slurm: make test-cloud")
DAEMONS = ("slurmctld", "slurmd", "munged")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    missing = [name for name in DAEMONS if not Path("/usr/sbin", name).exists()]
    if missing or os.geteuid() != 0:
        pytest.skip(f"wants root and {', '.join(missing)} (Debian: slurm-wlm munge)")
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine belongs to a Slurm cluster already")
    folder = tmp_path / "slurm"
    try:
        subprocess.run([STAND_IN / "slurm.sh", "start", folder], check=True)
        yield folder
    finally:
        subprocess.run([STAND_IN / "slurm.sh", "stop", folder], check=True)


@pytest.mark.pods
def test_a_recording_runs_as_a_job_of_the_cluster(cluster: Path, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", {"tiny": "llama"})
    shutil.copy(ROOT / "config/cluster.yaml", study.path / "config")
    target = "results/tiny/systematic.parquet"
    # This cluster keeps no accounts, so that the queue has to be asked how a job is.
    arguments = ["--profile", "profiles/slurm", "--slurm-status-command", "squeue", "--latency-wait", "5"]
    arguments += [
        "--set-threads",
        "record_outliers=2",
        "--set-resources",
        "record_outliers:mem_mb=2000",
        "record_outliers:runtime=10",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", target, *arguments],
        cwd=study.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert (study.path / target).is_file()
    assert "has been submitted with SLURM jobid" in done.stdout
    assert "JobId=1 " in (cluster / "log/slurmctld.log").read_text()
    assert done.stdout.count("SLURM jobid") == 1, "light rules run where Snakemake does"
