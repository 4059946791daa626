"""A job on rented nodes, in a thread of its own: take a node, send, run, follow, bring back; again if it is lost."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.arriving import forget
from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask, Submitted
from snakemake_executor_plugin_skypilot.errors import (
    CancelledError,
    KeptNodeGoneError,
    NoCapacityError,
    NodeLostError,
    rental_error,
)
from snakemake_executor_plugin_skypilot.ledger import Ledger, Rent
from snakemake_executor_plugin_skypilot.masked_log import MaskedLog
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode
from snakemake_executor_plugin_skypilot.pool import Node, NodePool
from snakemake_executor_plugin_skypilot.repeated import repeated
from snakemake_executor_plugin_skypilot.running_node import RunningNode

# Where no place has a node, the wait before the next try; each is twice the one before.
FIRST_WAIT_S, LONGEST_WAIT_S = 15, 300


@dataclass(frozen=True)
class JobFiles:
    """What a job leaves, as paths in the workflow's folder."""

    outputs: list[str]
    """What it makes: they come back if it succeeds."""
    logs: list[str]
    """Logs and benchmark files: they come back in any case."""
    resume: list[str]
    """What a killed job goes on from: it comes back if the job fails, and now and then while it runs."""


class Expected(NamedTuple):
    """What a job is said to take."""

    minutes: float
    """0 where nothing is said."""
    price_per_hour: Mapping[bool, float]
    """Dollars, by whether the node may be taken away; 0 where there is no price."""


@dataclass(frozen=True)
class Run:
    """What all jobs of a run share."""

    name: str
    """Its name."""
    root: Path
    """The workflow's folder."""
    arriving: Path
    """A folder for files that are on their way there."""
    cloud: Cloud
    """SkyPilot."""
    pool: NodePool
    """The run's nodes."""
    ledger: Ledger
    """What they cost."""
    max_recoveries: int
    """How often a job's lost node is replaced."""
    max_price_total: float | None
    """Dollars that the run may come to."""
    resume_every_s: float
    """Seconds between two copies of what a job would go on from."""
    say: Callable[[str], None]
    """Tells the user something."""


class RemoteJob(threading.Thread):
    """A job on rented nodes.

    Args:
        task: What runs.
        fill: Makes the folder that is sent, anew for each try.
        files: What comes back.
        log: Where the node's output goes.
        expected: What it is said to take.
        shared: What all jobs share.
    """

    def __init__(
        self,
        task: NodeTask,
        fill: Callable[[], None],
        files: JobFiles,
        log: MaskedLog,
        *,
        expected: Expected,
        shared: Run,
    ) -> None:
        super().__init__(name=f"job {task.name}", daemon=True)
        self._task = task
        self._fill = fill
        self._files = files
        self._log = log
        self._expected = expected
        self._shared = shared
        self._stop_waiting = threading.Event()
        self.problem: str | None = None
        """What went wrong; None while nothing did."""

    def run(self) -> None:
        """Run it to its end, well or not."""
        try:
            self._run_until_decided()
        except CancelledError:
            self.problem = "It was cancelled."
        except WorkflowError as error:
            self.problem = self._log.masked(str(error))
        except Exception as error:
            self._log.write(traceback.format_exc())
            self.problem = self._log.masked(f"{type(error).__name__}: {error}")
        finally:
            self._log.close()

    def cancel(self) -> None:
        """Wait for nothing any more."""
        self._stop_waiting.set()

    @property
    def last_lines(self) -> list[str]:
        """The end of what the node said."""
        return self._log.last_lines

    def _run_until_decided(self) -> None:
        tries, number, wait_s = self._shared.max_recoveries + 1, 1, FIRST_WAIT_S
        reason = ""
        while number <= tries:
            # What is sent is made first: a mistake in it costs no node.
            self._fill()
            node = self._shared.pool.take(self._wanted_at(is_last=number == tries and number > 1))
            try:
                return self._run_on(node)
            except NodeLostError as error:
                reason = f"its node was lost ({error})"
                number += not isinstance(error, KeptNodeGoneError)
            except NoCapacityError as error:
                reason = f"no node can be rented now ({error})"
                number += 1
                if number <= tries:
                    self._say(f"{reason}; waiting {wait_s} s")
                    self._stop_waiting.wait(wait_s)
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            if self._stop_waiting.is_set():
                raise CancelledError
            if number <= tries:
                self._say(f"{reason}; try {number} of {tries}")
        remedy = "Allow more recoveries (max-recoveries), other accelerators, or another place (infra)."
        raise rental_error(f"It was given up after {tries} tries: {reason}.", got=str(self._task.wanted), remedy=remedy)

    def _wanted_at(self, *, is_last: bool) -> WantedNode:
        """The node of a try: of the last one a node that cannot be taken away, if that may cost as much."""
        wanted = self._task.wanted
        cap, price = wanted.max_price_per_hour, self._expected.price_per_hour[False]
        may_be = cap is None or price <= cap
        return wanted._replace(spot=False) if is_last and may_be else wanted

    def _say(self, what: str) -> None:
        self._shared.say(self._log.masked(f"{self._task.name}: {what}."))

    def _run_on(self, node: Node) -> None:
        """Run it on a node, to its end there."""
        # A node that nothing happened to is as good as before.
        is_sound = node.is_ready
        try:
            rent = self._shared.ledger.open(self._rent(node), at_most=self._shared.max_price_total)
            is_sound = False
            succeeded = self._paid_for(node, rent)
            # One job may fail by itself; where two in a row do it may be the node, which would fail all that follow.
            is_sound = succeeded or not node.has_failed
            node.has_failed = not succeeded
        finally:
            self._shared.pool.give_back(node, is_sound=is_sound)
        if not succeeded:
            raise rental_error(f"It failed on its node, {rent.what}.")

    def _rent(self, node: Node) -> Rent:
        price = node.price_per_hour or self._expected.price_per_hour[node.wanted.spot]
        name, minutes = self._task.name, self._expected.minutes
        return Rent(self._shared.name, name, node.name, str(node.wanted), price, minutes, time.time())

    def _paid_for(self, node: Node, rent: Rent) -> bool:
        """Run it on a node, and note what that cost, whatever comes of it."""
        outcome = "lost"
        try:
            succeeded = self._on_node(node, rent)
            outcome = "succeeded" if succeeded else "failed"
        except CancelledError:
            outcome = "cancelled"
            raise
        except NoCapacityError as error:
            outcome = "no capacity"
            if not error.was_rented:
                rent.price_per_hour = 0.0
            raise
        except WorkflowError:
            outcome = "failed"
            raise
        finally:
            self._shared.ledger.close(rent, outcome)
        return succeeded

    def _submitted(self, node: Node) -> Submitted:
        cloud, task = self._shared.cloud, self._task._replace(wanted=node.wanted)
        if not node.is_ready or node.running is None:
            return cloud.launch(task, node.name, self._log)
        try:
            # What is sent may take longer than it may be idle.
            with node.running.kept_awake():
                return cloud.start(task, node.name, self._log)
        except NodeLostError as error:
            raise KeptNodeGoneError(str(error)) from error

    def _on_node(self, node: Node, rent: Rent) -> bool:
        submitted = self._submitted(node)
        node.is_up, node.what, node.price_per_hour = True, submitted.what, submitted.price_per_hour
        node.running = submitted.node
        rent.what, rent.price_per_hour = node.what, node.price_per_hour
        cap = node.wanted.max_price_per_hour
        if cap is not None and node.price_per_hour > cap + 0.005:
            # SkyPilot looks at the cheapest place that has such a node, and may end up in another.
            dearer = f"what was to be had costs ${node.price_per_hour:.2f} an hour, and may cost ${cap:g}"
            raise NoCapacityError(dearer, was_rented=True)
        seconds = time.time() - rent.started
        price = f"${submitted.price_per_hour:.2f} an hour"
        self._say(
            f"runs on {node.name} ({submitted.what}, {price}) after {seconds:.0f} s; its output: {self._log.name}"
        )
        running = submitted.node
        with self._copied_to_resume(running):
            succeeded = running.follow(submitted.job_id, self._log, may_vanish=node.wanted.spot)
        if succeeded:
            results = [*self._files.outputs, *self._files.logs]
            self._bring(running, results)
            # Nothing goes on from here any more.
            forget(self._files.resume, self._shared.root, kept=results)
        else:
            self._bring(running, [*self._files.logs, *self._files.resume])
        return succeeded

    def _copied_to_resume(self, node: RunningNode) -> AbstractContextManager[None]:
        """Brings what a killed job goes on from, now and then."""
        if not self._files.resume:
            return nullcontext()
        return repeated(self._shared.resume_every_s, lambda: self._bring(node, self._files.resume))

    def _bring(self, node: RunningNode, paths: list[str]) -> None:
        if paths:
            node.bring(paths, self._shared.root, scratch=self._shared.arriving)
