"""`outlier-moe nodes` and `logs`: this folder's nodes alone, what they cost, and which output is shown."""

from __future__ import annotations

import enum
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outlier_moe.cli import main
from outlier_moe.commands import nodes
from snakemake_executor_plugin_skypilot.masked_log import MaskedLog
from snakemake_executor_plugin_skypilot.names import STATE, log_path, node_name, project_name


class ClusterStatus(enum.Enum):
    """SkyPilot's own, as far as it is looked at."""

    INIT = "INIT"
    UP = "UP"


class Sky:
    """SkyPilot with some nodes: requests are what they will answer."""

    ClusterStatus = ClusterStatus

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.queues: dict[str, list[dict[str, Any]]] = {}
        self.ended: list[str] = []
        self.tailed: list[tuple[str, int, bool]] = []
        self.refuses: set[str] = set()
        self.fails: set[str] = set()

    def add(self, name: str, job: str | None, *, hours: float = 2.0, autostop: int = 10) -> None:
        resources = SimpleNamespace(
            instance_type="1x_RTX4090_SECURE", region="US", use_spot=True, get_cost=lambda seconds: 0.5 * seconds / 3600
        )
        record = {
            "name": name,
            "status": ClusterStatus.UP,
            "handle": SimpleNamespace(launched_resources=resources),
            "launched_at": time.time() - 3600 * hours,
            "autostop": autostop,
            "to_down": autostop >= 0,
        }
        self.records.append(record)
        over = {"job_id": 1, "job_name": "record_outliers.before", "status": SimpleNamespace(is_terminal=lambda: True)}
        runs = {"job_id": 2, "job_name": job, "status": SimpleNamespace(is_terminal=lambda: False)}
        self.queues[name] = [over] if job is None else [over, runs]

    def get(self, request: Callable[[], Any]) -> Any:
        return request()

    def status(self) -> Callable[[], Any]:
        return lambda: self.records

    def queue(self, name: str) -> Callable[[], Any]:
        return lambda: self.queues[name]

    def down(self, name: str) -> Callable[[], Any]:
        if name in self.refuses:
            raise ConnectionError("no server")
        return lambda: self._end(name)

    def _end(self, name: str) -> None:
        if name in self.fails:
            raise RuntimeError("500")
        self.ended.append(name)

    def tail_logs(self, name: str, job_id: int, *, follow: bool) -> None:
        self.tailed.append((name, job_id, follow))


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sky:
    fake = Sky()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "import_skypilot", lambda: fake)
    return fake


def ours(number: int = 0) -> str:
    return node_name(project_name(Path.cwd()), "0a1b2c", number)


def test_only_this_folders_nodes_are_shown(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    sky.add(ours(0), "record_outliers.mixtral")
    sky.add(ours(1), None, hours=1.0, autostop=-1)
    sky.add("smk-another-1234-0a1b2c-0", "record_outliers.mixtral")
    sky.add("somebody-elses", None)
    assert main(["nodes", "--format", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["node"], first["job"], first["idle"]) == (ours(0), "record_outliers.mixtral", "in use")
    assert first["dollars"] == pytest.approx(1.0, rel=1e-3)
    assert (second["job"], second["idle"]) == (None, "for ever")
    assert main(["nodes"]) == 0
    shown = capsys.readouterr().out
    assert "$1.50 so far" in shown and "1x_RTX4090_SECURE" in shown


@pytest.mark.parametrize("output_format", ["table", "csv", "json"])
def test_none_is_no_mistake(sky: Sky, output_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--format", output_format]) == 0
    shown = capsys.readouterr().out
    assert {"table": "No node", "csv": "node,", "json": "[]"}[output_format] in shown


def test_one_or_all_are_ended(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    sky.add(ours(0), None)
    sky.add(ours(1), None)
    sky.add("somebody-elses", None)
    assert main(["nodes", "--end", ours(1)]) == 0
    assert sky.ended == [ours(1)]
    assert main(["nodes", "--all"]) == 0
    assert sky.ended == [ours(1), ours(0), ours(1)]
    assert main(["nodes", "--end", "somebody-elses"]) == 1
    assert "No such node belongs to this folder's runs." in capsys.readouterr().err


def test_a_node_that_cannot_be_ended_keeps_no_other(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        sky.add(ours(number), None)
    sky.refuses, sky.fails = {ours(0)}, {ours(1)}
    assert main(["nodes", "--all"]) == 1
    assert sky.ended == [ours(2), ours(3)]
    said = capsys.readouterr()
    assert said.out == f"{ours(2)} is ended.\n{ours(3)} is ended.\n"
    assert f"{ours(0)}: ConnectionError: no server; {ours(1)}: RuntimeError: 500" in said.err
    assert f"sky down {ours(0)} {ours(1)}" in said.err


def test_whose_run_goes_on_is_warned_though_another_node_is_left(
    sky: Sky, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.add(ours(0), None)
    sky.add(ours(1), None)
    sky.fails = {ours(0)}
    monkeypatch.setattr("snakemake_executor_plugin_skypilot.runs.belongs_to_a_run", lambda *_: True)
    assert main(["nodes", "--all"]) == 1
    assert "it rents another" in capsys.readouterr().err


def test_all_of_none_is_no_mistake(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--all"]) == 0
    assert capsys.readouterr().out == "No node of this folder's runs is rented.\n"


def test_programs_get_the_same_columns_of_no_node(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--format", "csv"]) == 0
    of_none = capsys.readouterr().out
    sky.add(ours(0), None)
    assert main(["nodes", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[:1] == of_none.splitlines()


def test_a_running_jobs_output_comes_from_its_node(sky: Sky) -> None:
    sky.add(ours(0), "record_outliers.mixtral-large")
    sky.add(ours(1), "record_outliers.mixtral")
    assert main(["logs", "mixtral", "-f"]) == 0
    assert sky.tailed == [(ours(1), 2, True)]


def test_a_job_of_a_run_on_this_machine_is_followed_from_the_renting_on(
    sky: Sky, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log is followed until it is closed, though no node has the job yet."""
    job = "record_outliers.mixtral"
    log = MaskedLog(log_path(tmp_path / ".snakemake" / STATE, "record_outliers", job, "0a1b2c.1.1"), [])
    log.write("being launched\n")

    def go_on() -> None:
        time.sleep(0.7)
        log.write("recorded\n")
        log.close()

    job_thread = threading.Thread(target=go_on)
    job_thread.start()
    assert main(["logs", "mixtral", "-f"]) == 0
    job_thread.join()
    assert capsys.readouterr().out == "being launched\nrecorded\n"
    assert sky.tailed == []
    sky.add(ours(0), job)
    assert main(["logs", "mixtral", "-f"]) == 0
    assert sky.tailed == [(ours(0), 2, True)], "what a run that is gone has left"


def test_what_is_kept_is_the_last_try(sky: Sky, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ".snakemake/skypilot/logs/record_outliers"
    folder.mkdir(parents=True)
    for age, run in enumerate(("old", "new")):
        path = folder / f"record_outliers.mixtral.{run}.1.1.log"
        path.write_text(f"{run}\n")
        os.utime(path, (age, age))
    (folder / "record_outliers.mixtral-large.new.1.1.log").write_text("another\n")
    assert main(["logs", "mixtral"]) == 0
    assert capsys.readouterr().out == "new\n"


def test_a_model_without_a_job_is_named(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "mixtral"]) == 1
    assert "No job of this model runs on a node, and none has." in capsys.readouterr().err


@pytest.mark.parametrize("command", [["nodes"], ["logs", "mixtral"], ["cost", "mixtral"]])
def test_without_skypilot_the_remedy_is_said(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sky", None)
    assert main(command) == 1
    assert "make cloud" in capsys.readouterr().err


def test_an_env_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("KEY=\u00fc\n".encode("latin-1"))
    assert main(["nodes"]) == 1
    assert ".env" in capsys.readouterr().err
