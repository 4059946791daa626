"""The nodes of a project as SkyPilot has them, for commands that look at them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from snakemake_executor_plugin_skypilot.names import run_of
from snakemake_executor_plugin_skypilot.runs import is_held

# Between two looks at a log.
LOOK_EVERY_S = 0.5


class RentedNode(NamedTuple):
    """A node that costs money."""

    name: str
    """Its name."""
    status: str
    """As SkyPilot calls it: INIT, UP."""
    what: str
    """Its kind and place."""
    price_per_hour: float
    """Dollars."""
    launched_at: float
    """Seconds since 1970."""
    job: str | None
    """The job that it runs, rule and wildcards; None if it runs none."""
    job_id: int | None
    """The job's number in its queue."""
    idle_minutes_left: int | None
    """Within how many minutes without a job it ends itself; None if it does not."""

    @property
    def dollars(self) -> float:
        """What it has cost so far."""
        return (time.time() - self.launched_at) / 3600 * self.price_per_hour


def rented_nodes(sky: Any, project: str) -> list[RentedNode]:
    """All nodes of a project.

    Args:
        sky: SkyPilot.
        project: What their names begin with (see names.project_name).
    """
    records = [record for record in sky.get(sky.status()) if run_of(record["name"], project) is not None]
    # Asked of all nodes at once: each answer takes SkyPilot seconds.
    queues = {
        record["name"]: sky.queue(record["name"]) for record in records if record["status"] == sky.ClusterStatus.UP
    }
    return [_node(sky, record, queues.get(record["name"])) for record in records]


def ends_itself(record: Any) -> bool:
    """Whether a node, as SkyPilot has it, ends itself when it is idle."""
    return record["autostop"] >= 0 and record["to_down"]


def _node(sky: Any, record: Any, queue: Any) -> RentedNode:
    resources = getattr(record["handle"], "launched_resources", None)
    job = _running_job(sky, queue) if queue is not None else None
    what = "being launched"
    if resources is not None:
        spot = ", spot" if resources.use_spot else ""
        what = f"{resources.instance_type} in {resources.region}{spot}"
    return RentedNode(
        name=record["name"],
        status=record["status"].value,
        what=what,
        price_per_hour=resources.get_cost(3600) if resources is not None else 0.0,
        launched_at=float(record["launched_at"]),
        job=None if job is None else job["job_name"],
        job_id=None if job is None else job["job_id"],
        idle_minutes_left=record["autostop"] if ends_itself(record) else None,
    )


def _running_job(sky: Any, queue: Any) -> Any:
    """The job of a queue that is not over; None if there is none, or the node does not answer."""
    try:
        jobs = sky.get(queue)
    except Exception:  # It was taken away, say: that it is listed at all is what counts.
        return None
    return next((job for job in jobs if not job["status"].is_terminal()), None)


def followed(log: Path, *, every_s: float = LOOK_EVERY_S) -> Iterator[str]:
    """The text of a job's kept log, as it comes, until the job is over.

    Args:
        log: The file (see names.kept_logs).
        every_s: Seconds between two looks at it.
    """
    with log.open(encoding="utf-8") as file:
        is_going_on = True
        while is_going_on:
            # Asked before it is read, so that the last lines are not missed.
            is_going_on = is_held(log)
            if text := file.read():
                yield text
            if is_going_on:
                time.sleep(every_s)
