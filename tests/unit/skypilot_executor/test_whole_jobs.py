"""Whole runs of Snakemake on nodes that are folders, in which the jobs' own scripts run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# They need none of it, but half a minute, and belong to its package: make test-cloud.
pytest.importorskip("sky", reason="whole runs belong to make test-cloud")
pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
DRIVEN = Path(__file__).with_name("driven.py")


def _run(folder: Path, snakefile: str, *arguments: str, mode: str = "--real") -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(snakefile)
    command = [sys.executable, DRIVEN, folder / "notes", mode, "--latency-wait", "1", *arguments]
    environment = {**os.environ, "RUNPOD_API_KEY": "a key of the cloud"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def _launched(folder: Path) -> list[str]:
    notes = folder / "notes"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [line.split()[2] for line in lines if line.startswith("launch ")]


GROUP = """
rule all:
    input: "out/all.txt", "out/1.txt", "out/2.txt"
rule one:
    output: "out/{i}.txt"
    group: "g"
    shell: "echo {wildcards.i} > {output}"
rule passing:
    output: temp("out/passing.txt")
    group: "g"
    shell: "touch {output}"
rule together:
    input: "out/1.txt", "out/2.txt", "out/passing.txt"
    output: "out/all.txt"
    group: "g"
    shell: "cat {input} > {output}"
"""


def test_group(tmp_path: Path) -> None:
    """What its jobs read of each other is here afterwards, but what is temporary."""
    run = _run(tmp_path, GROUP)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.txt", "2.txt", "all.txt"]
    assert (tmp_path / "out/all.txt").read_text() == "1\n2\n" and len(_launched(tmp_path)) == 1


LATER = """
rule use:
    input: "in.txt"
    output: "out.txt"
    resources: disk_gb=lambda wildcards, input: DISK
    shell: "cp {input} {output}"
rule make:
    output: "in.txt"
    shell: "echo 1 > {output}"
"""


def test_resources_that_depend_on_files_to_come(tmp_path: Path) -> None:
    """Such a job is announced, its node told when it is to run; one that is wrong then fails alone."""
    run = _run(tmp_path, LATER.replace("DISK", "int(open(str(input)).read()) + 41"))
    assert run.returncode == 0, run.stderr
    assert "use: told when the files are there that decide its disk_gb" in run.stderr
    assert _launched(tmp_path) == ["make", "use"]
    wrong = _run(tmp_path / "wrong", LATER.replace("DISK", "0 * int(open(str(input)).read())"), "--keep-going")
    assert wrong.returncode == 1 and "resources.disk_gb of use" in wrong.stderr
    assert _launched(tmp_path / "wrong") == ["make"] and (tmp_path / "wrong/in.txt").exists()


UNFORESEEN = """
rule all:
    input: "long.txt", "all.txt"
rule long:
    output: "long.txt"
    shell: "sleep 3; touch {output}"
checkpoint split:
    output: "parts"
    shell: "echo ELSEWHERE/x.txt > {output}"
rule part:
    output: "ELSEWHERE/{name}.txt"
    shell: "touch {output}"
def parts(wildcards):
    return open(checkpoints.split.get().output[0]).read().split()
rule together:
    input: parts
    output: "all.txt"
    shell: "touch {output}"
"""


def test_a_job_that_cannot_start(tmp_path: Path) -> None:
    """It fails; those that run go on."""
    snakefile = UNFORESEEN.replace("ELSEWHERE", str(tmp_path / "elsewhere"))
    run = _run(tmp_path / "work", snakefile, "--keep-going")
    assert run.returncode == 1 and "outside of the workflow's folder" in run.stderr
    assert "Error in rule part" in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / "work/long.txt").exists()
    assert sorted(_launched(tmp_path / "work")) == ["long", "split"]


RULE = """
rule make:
    input: "in.txt"
    output: OUTPUT
    ACTION
"""
SHELL = 'shell: "touch {output}"'


@pytest.mark.parametrize(
    ("snakefile", "arguments", "said"),
    [
        (RULE.replace("OUTPUT", "'../out.txt'").replace("ACTION", SHELL), ["../out.txt"], "got: ../out.txt"),
        (RULE.replace("in.txt", "../in.txt").replace("OUTPUT", "'o'").replace("ACTION", SHELL), [], "got: ../in.txt"),
        (RULE.replace("in.txt", ".env").replace("OUTPUT", "'o'").replace("ACTION", SHELL), [], "file with secrets"),
        (RULE.replace("OUTPUT", "'o'").replace("ACTION", SHELL), ["--configfile", "../c.yaml"], "c.yaml"),
        ("include: '../common.smk'" + RULE.replace("OUTPUT", "'o'").replace("ACTION", SHELL), [], "common.smk"),
        (RULE.replace("OUTPUT", "'o'").replace("ACTION", "script: '../make.py'"), [], "make.py"),
    ],
    ids=["output", "input", "secrets", "configfile", "include", "script"],
)
def test_files_elsewhere(tmp_path: Path, snakefile: str, arguments: list[str], said: str) -> None:
    """They are told before anything is rented."""
    for name in ("in.txt", "c.yaml", "common.smk", "make.py", "work/in.txt", "work/.env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}" if name == "c.yaml" else "")
    run = _run(tmp_path / "work", snakefile, *arguments)
    assert run.returncode == 1 and said in run.stderr, run.stderr
    assert "Traceback" not in run.stderr and _launched(tmp_path / "work") == []


TEMPORARY = """
rule all:
    input: "1.txt", "looked.txt"
rule large:
    output: temp("large.bin")
    shell: "echo x > {output}"
rule use:
    input: "large.bin"
    output: "1.txt"
    shell: "cp {input} {output}"
rule look:
    input: "1.txt"
    output: "looked.txt"
    localrule: True
    shell: "ls .snakemake/tmp.*/ > {output}"
"""


def test_what_was_sent_takes_no_room(tmp_path: Path) -> None:
    """When a job is through."""
    run = _run(tmp_path, TEMPORARY)
    assert run.returncode == 0, run.stderr
    assert "node-files" not in (tmp_path / "looked.txt").read_text()


def test_errors_show_no_secret(tmp_path: Path) -> None:
    """What a cloud says when a node cannot be ended may hold the key."""
    run = _run(tmp_path, 'rule make:\n    output: "out.txt"\n    shell: "true"', mode="--stuck")
    assert "could not be ended: refused: ***\n" in run.stderr and "a key of" not in run.stderr


RESUMED = """
rule train:
    output: "out.txt"
    resources: resume="state/one"
    shell: "if [ -e state/one ]; then rm -r state; touch {output}; else mkdir state; touch state/one; exit 1; fi"
"""


def test_resume_is_forgotten(tmp_path: Path) -> None:
    """A job that failed leaves what its next try goes on from; one that succeeded leaves none of it."""
    assert _run(tmp_path, RESUMED).returncode == 1
    assert (tmp_path / "state/one").exists()
    assert _run(tmp_path, RESUMED).returncode == 0
    assert not (tmp_path / "state/one").exists()
