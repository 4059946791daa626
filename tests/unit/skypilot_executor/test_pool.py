"""Nodes that jobs take and give back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from snakemake_executor_plugin_skypilot.errors import CancelledError
from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode
from snakemake_executor_plugin_skypilot.pool import Node, NodePool

WANTED = WantedNode((Accelerators("A100-80GB", 1),), 100, False, 0)


class _Ends:
    """Notes which nodes are ended."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.names: list[str] = []
        self.reports: list[str] = []
        self.unused: list[str] = []
        self._problem = problem

    def __call__(self, name: str) -> None:
        self.names.append(name)
        if self._problem is not None:
            raise self._problem


def _pool(ends: _Ends, *, reuse: int = 0, keep_running: bool = False) -> NodePool:
    numbers = itertools.count()
    return NodePool(
        lambda: f"n{next(numbers)}",
        ends,
        reuse=reuse,
        keep_running=keep_running,
        report=ends.reports.append,
        unused=lambda node, since, until: ends.unused.append(f"{node.name} {until - since:.0f}"),
    )


def _up(node: Node) -> Node:
    node.is_up = True
    return node


def _in_thread(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(act())
        except CancelledError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_one_node_a_job() -> None:
    """Without reuse each job gets its own, which ends with it."""
    ends = _Ends()
    pool = _pool(ends)
    first, second = _up(pool.take(WANTED)), _up(pool.take(WANTED))
    assert (first.name, second.name) == ("n0", "n1")
    pool.give_back(first, is_sound=True)
    pool.close()
    assert sorted(ends.names) == ["n0", "n1"]
    # Its job gives it back after the run's end has ended it: once is enough.
    pool.give_back(second, is_sound=False)
    pool.close()
    assert sorted(ends.names) == ["n0", "n1"]


def test_reuse() -> None:
    """A sound node waits for the next job of its kind, and is ready; an unsound one is ended."""
    ends = _Ends()
    pool = _pool(ends, reuse=1)
    node = _up(pool.take(WANTED))
    assert not node.is_ready
    pool.give_back(node, is_sound=True)
    assert pool.take(WANTED) is node and node.is_ready
    pool.give_back(node, is_sound=False)
    assert pool.take(WANTED).name == "n1"
    assert pool.take(WANTED._replace(spot=True)).name == "n2", "another kind"
    pool.close()
    assert set(ends.names) == {"n0", "n1", "n2"}


def test_time_without_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told when the next job comes, and when the node is ended; one that never was up had none."""
    ends, now = _Ends(), [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    pool = _pool(ends, reuse=1)
    node = _up(pool.take(WANTED))
    pool.give_back(node, is_sound=True)
    now[0] += 30
    assert pool.take(WANTED) is node and ends.unused == ["n0 30"]
    pool.give_back(node, is_sound=True)
    now[0] += 70
    pool.close()
    assert ends.unused == ["n0 30", "n0 70"]
    pool = _pool(ends)
    pool.give_back(pool.take(WANTED), is_sound=False)
    pool.close()
    assert len(ends.unused) == 2


def test_a_node_that_ended_itself_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its idle limit of ten minutes is what it waited at most."""
    ends, now = _Ends(), [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    pool = _pool(ends, reuse=1)
    pool.give_back(_up(pool.take(WANTED)), is_sound=True)
    now[0] += 5 * 3600
    pool.close()
    assert ends.unused == ["n0 600"]


def test_a_kept_node_may_cost_too_much() -> None:
    """Then it makes room for another."""
    ends = _Ends()
    pool = _pool(ends, reuse=1)
    node = _up(pool.take(WANTED))
    node.price_per_hour = 2.0
    pool.give_back(node, is_sound=True)
    assert pool.take(WANTED._replace(max_price_per_hour=1.5)).name == "n1"
    pool.close()
    assert "n0" in ends.names


def test_jobs_wait_for_a_node() -> None:
    """With as many nodes as are allowed, a job waits for one of them."""
    pool = _pool(_Ends(), reuse=1)
    node = _up(pool.take(WANTED))
    thread, taken = _in_thread(lambda: pool.take(WANTED))
    time.sleep(0.05)
    assert not taken
    pool.give_back(node, is_sound=True)
    thread.join()
    assert taken == [node]
    pool.close()


def test_disk_too_small() -> None:
    """A node with a smaller disk than a job wants makes room for another; a larger one will do."""
    ends = _Ends()
    pool = _pool(ends, reuse=1)
    pool.give_back(_up(pool.take(WANTED)), is_sound=True)
    larger = _up(pool.take(WANTED._replace(disk_gb=500)))
    assert larger.name == "n1"
    pool.give_back(larger, is_sound=True)
    assert pool.take(WANTED) is larger
    pool.close()
    assert sorted(ends.names) == ["n0", "n1"]


def test_close_wakes_those_that_wait() -> None:
    """A job that waits for a node is cancelled, and none is given any more."""
    pool = _pool(_Ends(), reuse=1)
    pool.take(WANTED)
    thread, taken = _in_thread(lambda: pool.take(WANTED))
    time.sleep(0.05)
    pool.close()
    thread.join()
    assert isinstance(taken[0], CancelledError)
    with pytest.raises(CancelledError):
        pool.take(WANTED)


def test_ended_while_launched() -> None:
    """A node that was ended before its launch came to an end is ended again: SkyPilot may have begun in between."""
    ends = _Ends()
    pool = _pool(ends, reuse=2)
    node = pool.take(WANTED)
    pool.close()
    pool.give_back(node, is_sound=False)
    pool.close()
    assert ends.names == ["n0", "n0"]


def test_keep_running() -> None:
    """Nothing is ended."""
    ends = _Ends()
    pool = _pool(ends, keep_running=True)
    pool.give_back(_up(pool.take(WANTED)), is_sound=True)
    pool.give_back(_up(pool.take(WANTED)), is_sound=False)
    pool.close()
    assert ends.names == []


def test_node_that_cannot_be_ended() -> None:
    """It is told by name, with the command; the others are ended all the same."""
    ends = _Ends(RuntimeError("the cloud is down"))
    pool = _pool(ends)
    pool.take(WANTED)
    pool.take(WANTED)
    pool.close()
    assert sorted(ends.names) == ["n0", "n1"]
    assert any("n0" in said and "the cloud is down" in said and "sky down n0" in said for said in ends.reports)


def test_end_while_python_ends() -> None:
    """When no thread can be started any more, nodes are ended by the one that asks."""
    ends = _Ends()
    pool = _pool(ends)
    pool.take(WANTED)
    pool._enders.shutdown()
    pool.close()
    assert ends.names == ["n0"]


def test_many_jobs_share_few_nodes() -> None:
    """Never more nodes than are allowed, never two jobs on one, and every job gets its turn."""
    pool = _pool(_Ends(), reuse=3)
    busy: set[str] = set()
    most, seen = 0, []
    lock = threading.Lock()

    def work() -> None:
        nonlocal most
        node = _up(pool.take(WANTED))
        with lock:
            assert node.name not in busy
            busy.add(node.name)
            most = max(most, len(busy))
            seen.append(node.name)
        time.sleep(0.001)
        with lock:
            busy.remove(node.name)
        pool.give_back(node, is_sound=len(seen) % 7 != 0)

    threads = [threading.Thread(target=work) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 60 and most <= 3
    pool.close()
