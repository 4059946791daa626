"""Names of nodes, and runs that are over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_skypilot.names import job_name, new_run, node_name, project_name, run_of
from snakemake_executor_plugin_skypilot.runs import RunLock, is_alive, orphans


def test_a_run_finds_its_own_nodes(tmp_path: Path) -> None:
    """Neither another checkout's nor those of a project whose name begins alike are taken for this one's."""
    project, run = project_name(tmp_path / "a"), new_run()
    assert run_of(node_name(project, run, 12), project) == run
    assert project_name(tmp_path / "b/a") != project
    assert run_of(node_name(project_name(tmp_path / "b/a"), run, 0), project) is None
    chosen, longer = project_name(tmp_path, "sweep"), project_name(tmp_path, "sweep-abcdef")
    assert run_of(node_name(longer, run, 0), chosen) is None
    assert run_of("somebody-elses", project) is None
    assert project_name(tmp_path / "a", "sweep") != project_name(tmp_path / "b", "sweep"), "each has its own locks"


@pytest.mark.parametrize("chosen", ["My Sweep!", "ÜBER", "a" * 3, "--", None])
def test_names_are_plain(chosen: str | None, tmp_path: Path) -> None:
    """Clouds allow small letters, digits and hyphens."""
    name = node_name(project_name(tmp_path / "Ein Ordner_(1)", chosen), new_run(), 3)
    assert name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(name) < 50


def test_job_name() -> None:
    """Rule and wildcards, readable and of one word."""
    assert job_name("record", {"model": "org/some model", "part": "3"}) == "record.org-some-model.3"
    assert job_name("record", {}) == "record"


@pytest.mark.parametrize(
    ("rule", "wildcard", "expected"),
    [
        ("_private", "A+", "private.A"),
        ("work", "x_", "work.x"),
        ("work", "a__b", "work.a__b"),
        ("work", "a___b", "work.a_b"),
        ("work", "", "work"),
        ("work", "-1", "work.-1"),
        ("work", "--1", "work.1"),
        ("prüfe", "é", "pr-fe"),
        ("é", "", "job"),
        ("x" * 98, "_y", "x" * 98),
    ],
)
def test_odd_job_names(rule: str, wildcard: str, expected: str) -> None:
    """They are made such as SkyPilot allows."""
    assert job_name(rule, {"x": wildcard}) == expected


@given(st.text(max_size=120), st.lists(st.text("aé_-.+ ", max_size=60), max_size=3))
def test_skypilot_takes_every_job_name(sky: Any, rule: str, wildcards: list[str]) -> None:
    """By its own rule for names."""
    sky.Task(
        name=job_name(rule, {str(place): each for place, each in enumerate(wildcards)}), run="true"
    ).validate_name()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Even with kill -9 a run's nodes are orphans from then on; while it lives they are not."""
    script = (
        "from pathlib import Path; from snakemake_executor_plugin_skypilot.runs import RunLock;"
        f"lock = RunLock(Path({str(tmp_path)!r})); print(lock.name, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        nodes = [{"name": f"smk-p-{run}-0"}, {"name": "smk-q-000000-0"}, {"name": "smk-p-000000-7"}]
        assert is_alive(run, tmp_path)
        assert orphans(nodes, "smk-p", tmp_path) == [nodes[2]]
        process.kill()
        process.wait()
    assert not is_alive(run, tmp_path)
    assert orphans(nodes, "smk-p", tmp_path) == [nodes[0], nodes[2]]


def test_released_lock(tmp_path: Path) -> None:
    """A run that ended leaves no file."""
    lock = RunLock(tmp_path / "runs")
    assert is_alive(lock.name, tmp_path / "runs")
    lock.release()
    assert not is_alive(lock.name, tmp_path / "runs") and not any((tmp_path / "runs").iterdir())
