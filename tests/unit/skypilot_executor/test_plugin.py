"""The plugin as Snakemake sees it, with and without SkyPilot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.job_files import inputs_of, job_files, wildcards_of
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings
from tests import warm

SNAKEFILE = """
rule make:
    output: "out.txt"
    resources: accelerators="A100-80GB:1"
    shell: "touch {output}"
"""


class _Path(str):
    """A path of Snakemake's."""

    is_storage = False


class _Stored(_Path):
    """One of a storage provider."""

    is_storage = True


def _job(**changed: Any) -> Any:
    facts = {
        "input": [_Path("data/in.txt"), _Stored("s3/in.txt")],
        "output": [_Path("results/a.txt"), _Stored("s3/out.txt")],
        "log": [_Path("logs/a.log")],
        "benchmark": "logs/a.tsv",
        "resources": {"resume": "state/{model}.pt state/order"},
        "wildcards_dict": {"model": "m1"},
    }
    return SimpleNamespace(**facts | changed, is_group=lambda: False)


def test_files_of_a_job(tmp_path: Path) -> None:
    """Those of a storage provider are left to it; wildcards stand in `resume` as they do in outputs."""
    job = _job()
    assert inputs_of(job) == ["data/in.txt"]
    files = job_files(job, tmp_path)
    assert files.outputs == ["results/a.txt"]
    assert files.logs == ["logs/a.log", "logs/a.tsv"]
    assert files.resume == ["state/m1.pt", "state/order"]


def test_unreadable_resume(tmp_path: Path) -> None:
    """A wildcard that the job does not have."""
    with pytest.raises(WorkflowError, match=r"(?s)key: resources\.resume.*state/\{other\}"):
        job_files(_job(resources={"resume": "state/{other}"}), tmp_path)


def test_files_of_a_group(tmp_path: Path) -> None:
    """Benchmark files and outputs of all its jobs come back, also what they read of each other; no wildcards."""
    read_in_it = _job(output=[_Path("results/b.txt")], benchmark="logs/b.tsv")
    group = _job(resources={}, jobs=[_job(), _job(output=[], benchmark=None), read_in_it])
    group.is_group = lambda: True
    files = job_files(group, tmp_path)
    assert files.logs == ["logs/a.log", "logs/a.tsv", "logs/b.tsv"]
    assert files.outputs == ["results/a.txt", "results/b.txt"]
    assert wildcards_of(group) == {}


def test_every_setting_has_help() -> None:
    """It is all that a user of the command line sees."""
    assert all(field.metadata["help"].endswith(".") for field in fields(ExecutorSettings))


def test_without_skypilot(tmp_path: Path) -> None:
    """Snakemake's help shows the settings, and choosing the executor says what to install."""
    if importlib.util.find_spec("sky") is not None:
        pytest.skip("SkyPilot is installed here")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    snakemake = [sys.executable, "-m", "snakemake"]
    shown = subprocess.run([*snakemake, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0 and "--skypilot-max-price-per-hour" in shown.stdout
    refused = subprocess.run(
        [*snakemake, "--executor", "skypilot", "--jobs", "1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert refused.returncode == 1
    assert 'pip install "snakemake-executor-plugin-skypilot[runpod]"' in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--skypilot-idle-minutes", "0"], "idle-minutes"),
        (["--skypilot-reuse", "-1"], "reuse"),
        (["--skypilot-requirements", "none.lock"], "none.lock"),
    ],
)
def test_wrong_settings(tmp_path: Path, arguments: list[str], said: str) -> None:
    """They are told before SkyPilot is looked for."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    refused = warm.run("snakemake", "--executor", "skypilot", "--jobs", "1", *arguments, folder=tmp_path)
    assert refused.returncode == 1 and said in refused.stdout and "Traceback" not in refused.stdout


def test_snakefile_from_elsewhere(tmp_path: Path) -> None:
    """A node would not have it."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "run").mkdir()
    arguments = ["--executor", "skypilot", "--jobs", "1", "-s", "../Snakefile"]
    refused = warm.run("snakemake", *arguments, folder=tmp_path / "run")
    assert refused.returncode == 1 and "outside of the workflow's folder" in refused.stdout
