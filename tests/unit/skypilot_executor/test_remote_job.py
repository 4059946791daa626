"""A job's way over its nodes, with a cloud that does as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot import remote_job
from snakemake_executor_plugin_skypilot.cloud import NodeTask, Submitted
from snakemake_executor_plugin_skypilot.errors import CancelledError, NoCapacityError, NodeLostError
from snakemake_executor_plugin_skypilot.ledger import Ledger
from snakemake_executor_plugin_skypilot.masked_log import MaskedLog
from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode
from snakemake_executor_plugin_skypilot.pool import NodePool
from snakemake_executor_plugin_skypilot.remote_job import Expected, JobFiles, RemoteJob, Run
from snakemake_executor_plugin_skypilot.running_node import RunningNode

WANTED = WantedNode((Accelerators("A100-80GB", 1),), 100, True, 0)
FILES = JobFiles(["out"], ["log"], ["state"])
# What a call does: it raises, or returns.
Outcome = Exception | bool


@dataclass
class _Cloud:
    """Does at each call what is next in its list, and notes the calls."""

    launches: list[Exception | None] = field(default_factory=list)
    follows: list[Outcome] = field(default_factory=list)
    brings: list[Exception | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    spot: list[bool] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None

    def launch(self, task: NodeTask, node: str, log: MaskedLog) -> Submitted:
        self.spot.append(task.wanted.spot)
        return self._submit("launch", node)

    def start(self, task: NodeTask, node: str, log: MaskedLog) -> Submitted:
        return self._submit("start", node)

    def _submit(self, call: str, node: str) -> Submitted:
        self.calls.append(f"{call} {node}")
        problem = self.launches.pop(0) if self.launches else None
        if problem is not None:
            raise problem
        return Submitted(1, "a node", 2.0, cast(RunningNode, self))

    def kept_awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def follow(self, job_id: int, log: MaskedLog, *, may_vanish: bool) -> bool:
        log.write("what the node says, and s3cret\n")
        self.meanwhile()
        outcome = self.follows.pop(0) if self.follows else True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def bring(self, paths: list[str], into: Path, *, scratch: Path) -> None:
        self.calls.append(f"bring {' '.join(paths)}")
        problem = self.brings.pop(0) if self.brings else None
        if problem is not None:
            raise problem


class _Lab:
    """A run with such a cloud."""

    def __init__(self, folder: Path, cloud: _Cloud, **changed: Any) -> None:
        self.ended: list[str] = []
        self.said: list[str] = []
        self.unused: list[str] = []
        self.filled = 0
        self.wanted = WANTED
        self.cloud = cloud
        names = iter(f"n{number}" for number in range(100))
        self.pool = NodePool(
            lambda: next(names),
            self.ended.append,
            reuse=changed.pop("reuse", 0),
            keep_running=False,
            report=self.said.append,
            unused=lambda node, since, until: self.unused.append(node.name),
        )
        self.ledger = Ledger(folder / "costs.jsonl", self.said.append)
        settings = {"max_recoveries": 2, "max_price_total": None, "resume_every_s": 1000.0} | changed
        self.run_: Any = Run("run", folder, folder, cloud, self.pool, self.ledger, say=self.said.append, **settings)  # pyright: ignore[reportArgumentType]
        self._folder = folder

    def job(self, files: JobFiles = FILES) -> RemoteJob:
        task = NodeTask("evaluate", self._folder, "", "true", {}, self.wanted)
        log = MaskedLog(self._folder / "job.log", ["s3cret"])
        return RemoteJob(task, self._fill, files, log, expected=Expected(60, {True: 2.0, False: 3.0}), shared=self.run_)

    def _fill(self) -> None:
        self.filled += 1

    def done(self, files: JobFiles = FILES) -> RemoteJob:
        job = self.job(files)
        job.start()
        job.join(20)
        assert not job.is_alive()
        self.pool.close()
        return job

    @property
    def outcomes(self) -> list[str | None]:
        return [rent.outcome for rent in self.ledger._rents]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For capacity."""
    monkeypatch.setattr(remote_job, "FIRST_WAIT_S", 0)


def test_success(tmp_path: Path) -> None:
    """Outputs and logs come back, the node is ended, its time has a price."""
    lab = _Lab(tmp_path, _Cloud())
    job = lab.done()
    assert job.problem is None
    assert lab.cloud.calls == ["launch n0", "bring out log"]
    assert (lab.ended, lab.outcomes, lab.unused) == (["n0"], ["succeeded"], ["n0"])
    assert "evaluate: runs on n0 (a node, $2.00 an hour)" in lab.said[0]


def test_failure(tmp_path: Path) -> None:
    """Its logs come back, and what it may go on from; it is not run again."""
    lab = _Lab(tmp_path, _Cloud(follows=[False]))
    job = lab.done()
    assert job.problem == "It failed on its node, a node."
    assert lab.cloud.calls == ["launch n0", "bring log state"]
    assert (lab.ended, lab.outcomes, job.last_lines) == (["n0"], ["failed"], ["what the node says, and ***"])


def test_a_node_on_which_two_jobs_in_a_row_fail_is_ended(tmp_path: Path) -> None:
    """It may be the node's fault, and the next job would fail there too."""
    lab = _Lab(tmp_path, _Cloud(follows=[False, True, False, False]), reuse=1)
    for _ in range(5):
        job = lab.job()
        job.start()
        job.join(20)
    calls = [call for call in lab.cloud.calls if "bring" not in call]
    assert calls == ["launch n0", "start n0", "start n0", "start n0", "launch n1"]


@pytest.mark.parametrize(
    "cloud",
    [
        pytest.param(_Cloud(launches=[NodeLostError("gone")]), id="while it is set up"),
        pytest.param(_Cloud(follows=[NodeLostError("gone")]), id="while it runs"),
        pytest.param(_Cloud(brings=[NodeLostError("gone")]), id="while files come back"),
        pytest.param(_Cloud(follows=[False], brings=[NodeLostError("gone")]), id="it failed as it was taken away"),
    ],
)
def test_lost_node_is_replaced(tmp_path: Path, cloud: _Cloud) -> None:
    """The job runs again on another, from what has come back; the lost one is ended for good."""
    lab = _Lab(tmp_path, cloud)
    assert lab.done().problem is None
    assert [call for call in cloud.calls if "launch" in call] == ["launch n0", "launch n1"]
    assert (lab.ended, lab.filled, lab.outcomes) == (["n0", "n1"], 2, ["lost", "succeeded"])


def test_given_up(tmp_path: Path) -> None:
    """After so many recoveries, the last of them on demand."""
    lab = _Lab(tmp_path, _Cloud(follows=[NodeLostError("gone")] * 9))
    problem = lab.done().problem
    assert problem is not None and problem.startswith("It was given up after 3 tries: its node was lost (gone).")
    assert "max-recoveries" in problem
    assert lab.cloud.spot == [True, True, False]
    assert lab.ended == ["n0", "n1", "n2"]


def test_no_recovery_stays_spot(tmp_path: Path) -> None:
    """A first try is never the last one that is rented on demand."""
    lab = _Lab(tmp_path, _Cloud(), max_recoveries=0)
    assert lab.done().problem is None
    assert lab.cloud.spot == [True]


def test_no_capacity_then_capacity(tmp_path: Path) -> None:
    """It waits and tries again; what was not rented costs nothing."""
    lab = _Lab(tmp_path, _Cloud(launches=[NoCapacityError("none")]))
    assert lab.done().problem is None
    assert lab.outcomes == ["no capacity", "succeeded"] and lab.ledger._rents[0].dollars == 0
    assert any("no node can be rented now (none); waiting" in said for said in lab.said)


def test_kept_node_that_ended_itself(tmp_path: Path) -> None:
    """A node that waited too long is no recovery that counts."""
    lab = _Lab(tmp_path, _Cloud(), reuse=1, max_recoveries=0)
    first = lab.job()
    first.start()
    first.join(20)
    lab.cloud.launches = [NodeLostError("it ended itself")]
    assert lab.done().problem is None
    assert [call for call in lab.cloud.calls if "bring" not in call] == ["launch n0", "start n0", "launch n1"]


@pytest.mark.parametrize(
    ("cloud", "said"),
    [
        (_Cloud(launches=[CancelledError()]), "It was cancelled."),
        (_Cloud(launches=[WorkflowError("the token s3cret")]), "the token ***"),
        (_Cloud(follows=[RuntimeError("unforeseen")]), "RuntimeError: unforeseen"),
        (_Cloud(brings=[OSError(28, "No space left on device")]), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_whatever_happens_the_node_is_ended(tmp_path: Path, cloud: _Cloud, said: str) -> None:
    """And the job has a problem, in which no secret is."""
    lab = _Lab(tmp_path, cloud)
    assert lab.done().problem == said
    assert lab.ended == ["n0"]


def test_cancelled_while_it_waits_for_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait any longer, and rents nothing."""
    monkeypatch.setattr(remote_job, "FIRST_WAIT_S", 1000)
    lab = _Lab(tmp_path, _Cloud(launches=[NoCapacityError("none")]))
    job = lab.job()
    job.start()
    job.cancel()
    job.join(20)
    assert job.problem == "It was cancelled."
    assert lab.cloud.calls == ["launch n0"]


def test_price_cap_in_the_middle(tmp_path: Path) -> None:
    """A job, or a recovery, whose share would be too much is not rented; nor is one that waited for a kept node."""
    lab = _Lab(tmp_path, _Cloud(), max_price_total=1.9)
    problem = lab.done().problem
    assert problem is not None and "max-price-total" in problem and lab.cloud.calls == []
    lab = _Lab(tmp_path, _Cloud(), max_price_total=3.9, reuse=1)
    lab.cloud.meanwhile = lambda: time.sleep(0.05)
    jobs = [lab.job(), lab.job()]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(20)
    assert sorted(job.problem is None for job in jobs) == [True, True], "the first took seconds, not its hour"
    lab.ledger._rents[0].price_per_hour = 1e9
    third = lab.done()
    assert third.problem is not None and "max-price-total" in third.problem
    assert [call for call in lab.cloud.calls if "launch" in call] == ["launch n0"]


def test_last_try_may_not_cost_too_much(tmp_path: Path) -> None:
    """On demand is dearer than an hour may be: it stays with nodes that may be taken away."""
    lab = _Lab(tmp_path, _Cloud(follows=[NodeLostError("gone")] * 9))
    lab.wanted = WANTED._replace(max_price_per_hour=2.5)
    assert lab.done().problem is not None
    assert lab.cloud.spot == [True, True, True]


def test_dearer_than_was_said(tmp_path: Path) -> None:
    """A node that turns out to cost more than an hour may is given up at once."""
    lab = _Lab(tmp_path, _Cloud(), max_recoveries=0)
    lab.wanted = WANTED._replace(max_price_per_hour=1.5)
    problem = lab.done().problem
    assert problem is not None and "costs $2.00 an hour, and may cost $1.5" in problem
    assert lab.ended == ["n0"]


def test_a_loss_on_a_kept_node_counts(tmp_path: Path) -> None:
    """If it had the job already."""
    lab = _Lab(tmp_path, _Cloud(), reuse=1, max_recoveries=0)
    first = lab.job()
    first.start()
    first.join(20)
    lab.cloud.follows = [NodeLostError("gone")]
    problem = lab.done().problem
    assert problem is not None and problem.startswith("It was given up after 1 tries")


def test_a_mistake_in_what_is_sent_costs_no_node(tmp_path: Path) -> None:
    """A kept node goes on waiting for the next job."""
    lab = _Lab(tmp_path, _Cloud(), reuse=1)
    first = lab.job()
    first.start()
    first.join(20)
    broken = lab.job()
    broken._fill = lambda: (_ for _ in ()).throw(WorkflowError("an input lies elsewhere"))
    broken.start()
    broken.join(20)
    assert broken.problem == "an input lies elsewhere" and lab.ended == []
    assert lab.done().problem is None
    assert [call for call in lab.cloud.calls if "bring" not in call] == ["launch n0", "start n0"]


def test_resume_files_come_while_it_runs(tmp_path: Path) -> None:
    """Now and then; that one copy fails is no matter."""
    copied = threading.Event()
    cloud = _Cloud(brings=[NodeLostError("for a moment")], meanwhile=lambda: copied.wait(10))
    lab = _Lab(tmp_path, cloud, resume_every_s=0.01)
    bring = cloud.bring

    def noted(paths: list[str], into: Path, *, scratch: Path) -> None:
        bring(paths, into, scratch=scratch)
        copied.set()

    cloud.bring = noted
    assert lab.done().problem is None
    assert cloud.calls[1:3] == ["bring state", "bring state"] and cloud.calls[-1] == "bring out log"


def test_nothing_to_resume(tmp_path: Path) -> None:
    """Then nothing is copied while it runs."""
    lab = _Lab(tmp_path, _Cloud(), resume_every_s=0.0)
    assert lab.done(JobFiles([], [], [])).problem is None
    assert lab.cloud.calls == ["launch n0"]
