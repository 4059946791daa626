"""The nodes of a run: rented as jobs want them, kept for following jobs where they are reused, ended with the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from snakemake_executor_plugin_skypilot.errors import CancelledError
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode
from snakemake_executor_plugin_skypilot.running_node import RunningNode


@dataclass
class Node:
    """A node of this run, from the moment on that it is asked for."""

    name: str
    """Its name, which SkyPilot knows too."""
    wanted: WantedNode
    """What it was rented for."""
    is_ready: bool = False
    """Whether it has been set up: a job of before ran on it."""
    has_failed: bool = False
    """Whether its last job failed."""
    is_up: bool = False
    """Whether its launch has come to an end."""
    in_use: bool = True
    """Whether a job has it."""
    what: str = ""
    """What it is, for people, once it is up."""
    price_per_hour: float = 0.0
    """Dollars, once it is up."""
    unused_since: float | None = None
    """When its last job was through, in seconds since 1970."""
    running: RunningNode | None = None
    """What talks to it, once it is up."""


class NodePool:
    """The nodes of a run. A job takes one and gives it back.

    Args:
        new_name: Gives the name of the next node.
        end: Ends a node, by name.
        reuse: How many nodes of a kind are rented and kept; 0: one for each job, which ends with it.
        keep_running: Whether none is ended.
        report: Is told of a node that could not be ended.
        unused: Is told of a node that was there without a job, since when, and until when.
    """

    def __init__(
        self,
        new_name: Callable[[], str],
        end: Callable[[str], None],
        *,
        reuse: int,
        keep_running: bool,
        report: Callable[[str], None],
        unused: Callable[[Node, float, float], None],
    ) -> None:
        self._new_name = new_name
        self._end = end
        self._reuse = reuse
        self._keep_running = keep_running
        self._report = report
        self._unused = unused
        self._nodes: dict[str, Node] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        # Ending takes seconds to a minute, and no job has to wait for it.
        self._enders = ThreadPoolExecutor(max_workers=8, thread_name_prefix="end-node")
        self._ending: list[Future[None]] = []

    def take(self, wanted: WantedNode) -> Node:
        """A node for a job: one that waits for it, or a new one that is to be launched; waits where enough are rented.

        Raises:
            CancelledError: If the run is being ended.
        """
        with self._changed:
            while not self._is_closed:
                of_kind = [node for node in self._nodes.values() if node.wanted.kind == wanted.kind]
                idle = [node for node in of_kind if not node.in_use]
                fitting = [node for node in idle if _fits(node, wanted)]
                if fitting:
                    return self._used_again(fitting[0])
                if self._reuse and len(of_kind) >= self._reuse and idle:
                    # Those that wait have too small a disk for it, or cost more than it may.
                    self._discard(idle[0])
                    continue
                if not self._reuse or len(of_kind) < self._reuse:
                    node = Node(self._new_name(), wanted)
                    self._nodes[node.name] = node
                    return node
                self._changed.wait()
            raise CancelledError

    def give_back(self, node: Node, *, is_sound: bool) -> None:
        """Keep a node for the next job, or end it.

        Args:
            node: The node.
            is_sound: Whether the next job can run there.
        """
        with self._changed:
            node.in_use, node.unused_since = False, time.time()
            if is_sound and self._reuse and not self._is_closed:
                node.is_ready = True
            else:
                self._discard(node)
            self._changed.notify_all()

    def _used_again(self, node: Node) -> Node:
        self._tell_unused(node)
        node.in_use, node.unused_since = True, None
        return node

    def _tell_unused(self, node: Node) -> None:
        if node.is_up and node.unused_since is not None:
            # A node that waits for longer than its idle limit has ended itself.
            limit = float("inf") if self._keep_running else 60 * node.wanted.idle_minutes
            self._unused(node, node.unused_since, min(time.time(), node.unused_since + limit))

    def close(self) -> None:
        """End all nodes, and wait until they are."""
        with self._changed:
            self._is_closed = True
            for node in list(self._nodes.values()):
                self._discard(node)
            self._changed.notify_all()
            ending = list(self._ending)
        wait(ending)

    def _discard(self, node: Node) -> None:
        """Forget a node and end it in the background; the lock is held."""
        is_known = self._nodes.pop(node.name, None) is not None
        # One that was ended while it was launched is ended once more after that: SkyPilot may have begun in between.
        if self._keep_running or (node.is_up and not is_known):
            return
        try:
            self._ending.append(self._enders.submit(self._ended, node))
        except RuntimeError:  # Python itself is ending, and starts no threads any more.
            self._ended(node)

    def _ended(self, node: Node) -> None:
        try:
            self._end(node.name)
        except Exception as error:
            self._report(f"Node {node.name} could not be ended: {error}\nEnd it by hand: sky down {node.name}")
        self._tell_unused(node)


def _fits(node: Node, wanted: WantedNode) -> bool:
    """Whether a node of the right kind will do for a job."""
    may_cost = wanted.max_price_per_hour is None or node.price_per_hour <= wanted.max_price_per_hour
    return node.wanted.disk_gb >= wanted.disk_gb and may_cost
