"""The pipeline on a node: what a node records of a tiny model equals what this machine records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.cloud.lab import Lab, why_not
from tests.workflow.study_folder import ROOT, StudyFolder, make_study

OUTLIERS = "results/tiny/outliers"
# What the job says.
RECORDING = "Recording the outliers of tiny"
# The environment that nodes install for themselves.
CORE = ROOT / ".venv/bin"

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the core environment is not set up: make test-cloud")


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    """All tables of a recording."""
    found = {path.name: pl.read_ipc(path) for path in folder.glob("*.arrow")}
    return found | {path.name: pl.read_parquet(path) for path in folder.glob("*.parquet")}


@pytest.mark.pods
def test_a_node_records_what_this_machine_does(lab: Lab) -> None:
    # Named, as the profile's sweep has no tiny one.
    study = make_study(lab.folder / "pipeline", {"tiny": "mixtral"}, models=["tiny"])
    shutil.copytree(ROOT / "src", study.path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "config/cluster.yaml", study.path / "config")
    study.snakemake("resources/models/tiny", "results/tiny/tokens.arrow")
    # Sources are what git has: src among them, which the nodes run.
    shutil.copy(ROOT / "requirements.lock", study.path)
    for command in (["init", "-q"], ["add", "src", "workflow", "config", "profiles", "Snakefile"]):
        subprocess.run(["git", *command], cwd=study.path, check=True)
    lab.serve_wheels("--requirement", ROOT / "requirements.lock")
    # The profile as it is, but that the job waits in the beginning, so that there is something to watch.
    prelude = ["--skypilot-prelude", 'sleep 40; export PYTHONPATH="$PWD/src"']
    driver = lab.snakemake(study.path, OUTLIERS, "--profile", "profiles/runpod", *prelude)
    driver.wait_until(" runs on ")
    node = driver.said.split(" runs on ")[1].split()[0]
    (shown,) = json.loads(_command(lab, study, "nodes", "--format", "json"))
    assert (shown["node"], shown["job"], shown["status"]) == (node, "record_outliers.tiny", "UP")
    assert node in subprocess.run(["sky", "status"], env=lab.environment, capture_output=True, text=True).stdout
    followed = _command(lab, study, "logs", "tiny", "--follow")
    assert driver.wait() == 0, driver.all_said
    assert RECORDING in followed
    assert RECORDING in _command(lab, study, "logs", "tiny"), "what was kept of it"
    assert _command(lab, study, "nodes") == "No node of this folder's runs is rented.\n"
    assert "tiny: small (RTX4090:1" in driver.said
    assert [event["gpu"] for event in lab.events("created")][-1] == "NVIDIA GeForce RTX 4090"
    assert lab.pods == []
    assert not (study.path / "results/tiny/.outliers.resume").exists()

    there, versions_there = tables(study.path / OUTLIERS), _versions(study)
    shutil.rmtree(study.path / OUTLIERS)
    subprocess.run([CORE / "python", "-m", "snakemake", "--cores", "2", OUTLIERS], cwd=study.path, check=True)
    here = tables(study.path / OUTLIERS)
    assert versions_there == _versions(study), "the pins of requirements.lock"
    assert here.keys() == there.keys() and len(here) > 5
    for name, table in here.items():
        assert table.equals(there[name]), name


@pytest.mark.skipif(why_not() == "SkyPilot is not installed here: make test-cloud", reason="wants both environments")
def test_both_environments_make_the_same_tokens_and_tables(tmp_path: Path) -> None:
    made = make_study(tmp_path / "study", {"tiny": "llama", "tiny-mixtral": "mixtral"})
    targets = ["results/tiny/tokens.arrow", "results/comparison/models.parquet", "results/tiny/systematic.parquet"]
    copies = {}
    for python in (CORE / "python", Path(sys.executable)):
        folder = made.copied(tmp_path / python.parent.parent.name)
        command = [python, "-m", "snakemake", "--cores", "2", *targets]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        subprocess.run(command, cwd=folder.path, env=environment, check=True, capture_output=True)
        copies[python] = folder
    core, cloud = copies.values()
    assert _versions(core)["transformers"] != _versions(cloud)["transformers"], "or nothing was compared"
    tokens = [pl.read_ipc(study.path / targets[0]) for study in (core, cloud)]
    assert tokens[0].equals(tokens[1])
    for name in targets[1:]:
        assert pl.read_parquet(core.path / name).equals(pl.read_parquet(cloud.path / name)), name


def _command(lab: Lab, study: StudyFolder, *arguments: str) -> str:
    """What a command of outlier-moe prints in a study's folder."""
    command = [Path(sys.executable).with_name("outlier-moe"), *arguments]
    done = subprocess.run(command, cwd=study.path, env=lab.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _versions(study: StudyFolder) -> dict[str, str]:
    return json.loads((study.path / OUTLIERS / "run.json").read_text())["versions"]
