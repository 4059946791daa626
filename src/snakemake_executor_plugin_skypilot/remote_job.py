"""A job on rented nodes, in a thread of its own: take a node, send, run, follow, bring back; again if it is lost."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask
from snakemake_executor_plugin_skypilot.errors import CancelledError, NoCapacityError, NodeLostError, told
from snakemake_executor_plugin_skypilot.ledger import Ledger, Rent
from snakemake_executor_plugin_skypilot.masked_log import MaskedLog
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
    price_per_hour: float
    """Dollars; 0 where there is no price."""


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
        expected: What it is said to take, in minutes and dollars an hour; 0 where nothing is said.
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
            wanted = self._task.wanted
            if number == tries and number > 1:
                wanted = wanted._replace(spot=False)
            self._refuse_too_expensive()
            node = self._shared.pool.take(wanted)
            try:
                return self._run_on(node)
            except NodeLostError as error:
                reason = f"its node was lost ({error})"
                # One that was kept may have ended itself while it waited: that is no recovery.
                number += not node.is_ready
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
        raise told(f"It was given up after {tries} tries: {reason}.", got=str(self._task.wanted), remedy=remedy)

    def _say(self, what: str) -> None:
        self._shared.say(f"{self._task.name}: {what}.")

    def _refuse_too_expensive(self) -> None:
        cap, committed = self._shared.max_price_total, self._shared.ledger.committed
        if cap is not None and committed >= cap:
            remedy = "What is finished stays: raise it and run again."
            raise told(
                f"The run may not cost more than ${cap:g}.",
                key="max-price-total",
                got=f"${committed:.2f}",
                remedy=remedy,
            )

    def _run_on(self, node: Node) -> None:
        """Run it on a node, to its end there."""
        shared, (minutes, price) = self._shared, self._expected
        rent = shared.ledger.open(
            Rent(shared.name, self._task.name, node.name, str(node.wanted), price, minutes, time.time())
        )
        is_sound, outcome = False, "lost"
        try:
            succeeded = self._on_node(node, rent)
            is_sound, outcome = True, "succeeded" if succeeded else "failed"
        except CancelledError:
            outcome = "cancelled"
            raise
        except NoCapacityError:
            outcome, rent.price_per_hour = "no capacity", 0.0
            raise
        except WorkflowError:
            outcome = "failed"
            raise
        finally:
            shared.ledger.close(rent, outcome)
            shared.pool.give_back(node, is_sound=is_sound)
        if not succeeded:
            raise told(f"It failed on its node, {rent.what}.")

    def _on_node(self, node: Node, rent: Rent) -> bool:
        self._fill()
        cloud = self._shared.cloud
        submit = cloud.start if node.is_ready else cloud.launch
        submitted = submit(self._task._replace(wanted=node.wanted), node.name, self._log)
        node.is_up, node.what, node.price_per_hour = True, submitted.what, submitted.price_per_hour
        rent.what, rent.price_per_hour = node.what, node.price_per_hour
        seconds = time.time() - rent.started
        price = f"${submitted.price_per_hour:.2f} an hour"
        self._say(
            f"runs on {node.name} ({submitted.what}, {price}) after {seconds:.0f} s; its output: {self._log.name}"
        )
        running = submitted.node
        with self._copied_to_resume(running):
            succeeded = running.follow(submitted.job_id, self._log, may_vanish=node.wanted.spot)
        if succeeded:
            self._bring(running, [*self._files.outputs, *self._files.logs])
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
