"""Whole runs of Snakemake with a cloud that only notes what it is asked for: every node that is asked for is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# They need none of it, but half a minute, and belong to its package: make test-cloud.
pytest.importorskip("sky", reason="whole runs belong to make test-cloud")
DRIVEN = Path(__file__).with_name("driven.py")
SNAKEFILE = """
rule good:
    output: "out/good-{n}.txt"
    shell: "true"

rule wait:
    output: "out/wait-{n}.txt"
    shell: "true"

rule surprise:
    output: "out/surprise.txt"
    shell: "true"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workflow's folder."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, DRIVEN, folder / "notes", *arguments]
    # Tests that are started in the background hand on that they heed no Ctrl-C.
    return subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _notes(folder: Path, kind: str) -> list[str]:
    notes = folder / "notes"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return sorted(line.split()[1] for line in lines if line.startswith(f"{kind} "))


def test_success(folder: Path) -> None:
    """A node for each job, all ended; costs are said, and no lock is left."""
    with _start(folder, "out/good-1.txt", "out/good-2.txt", "out/good-3.txt") as run:
        said, _ = run.communicate()
    assert run.returncode == 0, said
    assert len(_notes(folder, "launch")) == 3 and _notes(folder, "end") == _notes(folder, "launch")
    assert "Rented 3 nodes" in said and "good.2: $0.0" in said
    assert not any((folder / ".snakemake/skypilot/runs").iterdir())
    # What a job's output was is where Snakemake said.
    assert any("good.1 is here" in path.read_text() for path in (folder / ".snakemake/skypilot/logs/good").iterdir())


def test_kept_nodes(folder: Path) -> None:
    """They serve one job after the other, and are ended with the run, or kept if that is wanted."""
    with _start(folder, "out/good-1.txt", "out/good-2.txt", "out/good-3.txt", "--skypilot-reuse", "1") as run:
        said, _ = run.communicate()
    assert run.returncode == 0, said
    assert len(set(_notes(folder, "launch"))) == 1 and _notes(folder, "end") == _notes(folder, "launch")[:1]
    (folder / "notes").unlink()
    with _start(folder, "out/good-4.txt", "--skypilot-keep-running") as run:
        said, _ = run.communicate()
    assert run.returncode == 0 and "cost money" in said
    assert _notes(folder, "end") == []


def test_unforeseen(folder: Path) -> None:
    """A job's problem is shown with the end of its output; what other jobs made stays."""
    with _start(folder, "out/surprise.txt", "out/good-1.txt", "--keep-going") as run:
        said, _ = run.communicate()
    assert run.returncode == 1
    assert "RuntimeError: nobody foresaw it" in said and "    surprise is here" in said
    assert (folder / "out/good-1.txt").exists()
    assert _notes(folder, "end") == _notes(folder, "launch")


def test_a_run_that_has_come_to_its_price_is_ended(folder: Path) -> None:
    """Whatever was said before: a job may hang."""
    arguments = ["--skypilot-max-price-total", "0.02", "--keep-going", "--retries", "1"]
    with _start(folder, "out/wait-1.txt", "out/good-1.txt", *arguments) as run:
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 1 and said.count("The run has come to $0.02 (max-price-total)") == 1, said
    assert (folder / "out/good-1.txt").exists()
    assert _notes(folder, "end") == _notes(folder, "launch") and len(_notes(folder, "launch")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("broken", [False, True])
def test_ended_from_outside(folder: Path, number: signal.Signals, broken: bool) -> None:
    """Nodes are ended before Snakemake is, and even if SkyPilot cannot stop what it was asked for."""
    arguments = ["--broken"] if broken else []
    with _start(folder, *arguments, "out/wait-1.txt", "out/wait-2.txt", "out/wait-3.txt") as run:
        deadline = time.monotonic() + 60
        while len(_notes(folder, "launch")) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(number)
        said, _ = run.communicate(timeout=60)
    assert run.returncode != 0, said
    assert _notes(folder, "end") == _notes(folder, "launch") and len(_notes(folder, "launch")) == 3
    assert ("could not be stopped" in said) == broken
