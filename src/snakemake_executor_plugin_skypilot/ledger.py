"""What a run's nodes cost, from being asked for to being gone: in a file beside Snakemake's own, and in sum."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from snakemake_executor_plugin_skypilot.errors import rental_error

# The time in which a node waited for a job, or ended.
NO_JOB = "(no job)"


@dataclass
class Rent:
    """The time that a job had a node."""

    run: str
    """The run."""
    job: str
    """Rule and wildcards; or what it had the node for that is no job."""
    node: str
    """The node's name."""
    what: str
    """What it is, and where."""
    price_per_hour: float
    """Dollars: by the catalogue, and of the node itself as soon as it is there."""
    expected_minutes: float
    """How long the job was said to take; 0 where nothing is said."""
    started: float
    """When the node was asked for, or taken, in seconds since 1970."""
    ended: float | None = None
    """When it was given back."""
    outcome: str | None = None
    """How the job ended there: succeeded, failed, lost, cancelled, no capacity; unused if it was none."""

    @property
    def minutes(self) -> float:
        """So far."""
        return ((self.ended or time.time()) - self.started) / 60

    @property
    def dollars(self) -> float:
        """So far."""
        return self.minutes / 60 * self.price_per_hour

    @property
    def expected_dollars(self) -> float:
        """In the end, if it takes as long as was said."""
        minutes = self.minutes if self.ended else max(self.minutes, self.expected_minutes)
        return minutes / 60 * self.price_per_hour


class Ledger:
    """What a run costs.

    Args:
        path: A file of JSON lines, to which each ended rent is added.
        report: Is told if that cannot be written; the run goes on.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report
        self._rents: list[Rent] = []
        self._lock = threading.Lock()

    def open(self, rent: Rent, *, at_most: float | None = None) -> Rent:
        """Note that a job has a node from now on.

        Args:
            rent: The time that it has it.
            at_most: Dollars that the run may come to, this job's share included.

        Raises:
            RentalError: If it would come to more.
        """
        with self._lock:
            total = sum(each.expected_dollars for each in [*self._rents, rent])
            if at_most is not None and total > at_most:
                raise rental_error(
                    f"The run may not cost more than ${at_most:g}.",
                    key="max-price-total",
                    got=f"${total:.2f} with this job",
                    remedy="What is finished stays: raise it and run again.",
                )
            self._rents.append(rent)
        return rent

    @property
    def dollars(self) -> float:
        """What the run has cost so far."""
        with self._lock:
            return sum(rent.dollars for rent in self._rents)

    def close(self, rent: Rent, outcome: str) -> None:
        """Note that it has it no more."""
        rent.ended, rent.outcome = rent.ended or time.time(), outcome
        line = json.dumps(asdict(rent) | {"dollars": round(rent.dollars, 4)}) + "\n"
        try:
            with self._lock, self._path.open("a") as file:
                file.write(line)
        except OSError as error:
            self._report(f"A cost could not be noted in {self._path}: {error}")

    def add_unused(self, run: str, node: str, what: str, price_per_hour: float, since: float, until: float) -> None:
        """Note a time in which a node of a run was there without a job."""
        self.close(self.open(Rent(run, NO_JOB, node, what, price_per_hour, 0.0, since, until)), "unused")

    def summary(self) -> str | None:
        """What was rented in all, and what each job cost; None if nothing was."""
        with self._lock:
            rents = list(self._rents)
        if not rents:
            return None
        by_job: dict[str, float] = {}
        for rent in rents:
            by_job[rent.job] = by_job.get(rent.job, 0) + rent.dollars
        n_nodes, minutes = len({rent.node for rent in rents}), sum(rent.minutes for rent in rents)
        total = sum(by_job.values())
        lines = [f"  {job}: ${dollars:.2f}" for job, dollars in by_job.items()]
        head = f"Rented {n_nodes} node{'s' if n_nodes > 1 else ''} for {minutes:.0f} minutes: ${total:.2f}"
        return "\n".join([f"{head}, by SkyPilot's prices ({self._path}).", *lines])
