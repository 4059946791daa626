"""The files of a job: what a node has to get, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_skypilot.errors import rental_error
from snakemake_executor_plugin_skypilot.names import job_name
from snakemake_executor_plugin_skypilot.remote_job import JobFiles
from snakemake_executor_plugin_skypilot.staging import inside

# A job of Snakemake's, or a group of them. JobExecutorInterface does not name all that they have.
Job = Any


def inputs_of(job: Job) -> list[str]:
    """What a node has to get: a job's inputs, and what its resource `send` names.

    Files of a storage provider are not among them: the job on the node brings those itself.
    """
    return [*_local(job.input), *_named(job, "send")]


def job_files(job: Job, root: Path) -> JobFiles:
    """What a job gives back, as paths in the workflow's folder.

    Raises:
        RentalError: If one is outside of it.
    """
    single = jobs_of(job)
    benchmarks = [each.benchmark for each in single if each.benchmark]
    return JobFiles(
        # A group's own list leaves out what its jobs read of each other, which Snakemake waits for all the same.
        outputs=[inside(path, root) for each in single for path in _local(each.output)],
        logs=[inside(path, root) for path in (*_local(job.log), *_local(benchmarks))],
        resume=[inside(path, root) for path in _named(job, "resume")],
    )


def jobs_of(job: Job) -> list[Job]:
    """The jobs of a group; of a job itself that one."""
    return list(job.jobs) if job.is_group() else [job]


def name_of(job: Job) -> str:
    """What a job is called."""
    return job_name(job.name, wildcards_of(job))


def minutes_of(job: Job) -> float:
    """What a job says it takes; 0 if it says nothing, or nothing yet."""
    runtime = job.resources.get("runtime")
    return float(runtime) if isinstance(runtime, int | float) else 0.0


def wildcards_of(job: Job) -> dict[str, str]:
    """The wildcards of a job; of a group there are none."""
    return {} if job.is_group() else dict(job.wildcards_dict)


def _local(paths: Iterable[str]) -> list[str]:
    return [str(path) for path in paths if not getattr(path, "is_storage", False)]


def _named(job: Job, resource: str) -> list[str]:
    """The paths of a resource, between blanks; wildcards stand in them as they do in outputs."""
    said = str(job.resources.get(resource) or "")
    try:
        return said.format(**wildcards_of(job)).split()
    except (KeyError, IndexError, ValueError):
        remedy = "Write wildcards in it as in an output, or give it by a function."
        raise rental_error("A resource cannot be read.", key=f"resources.{resource}", got=said, remedy=remedy) from None
