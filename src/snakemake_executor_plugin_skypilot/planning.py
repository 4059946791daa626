"""What a run's own settings, files and resources say before anything is rented, and before SkyPilot is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_skypilot.errors import RentalError, rental_error
from snakemake_executor_plugin_skypilot.job_files import Job, inputs_of, job_files, jobs_of, minutes_of, name_of
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode, undecided
from snakemake_executor_plugin_skypilot.preflight import Planned
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings
from snakemake_executor_plugin_skypilot.staging import KeptBack, inside

# The settings that are numbers, and the least that each may be.
LEAST = {"reuse": 0, "max_recoveries": 0, "idle_minutes": 1, "disk_size": 1, "resume_seconds": 1, "launch_minutes": 1}


def check_settings(settings: ExecutorSettings) -> None:
    """Refuse settings that cannot be.

    Raises:
        RentalError: If a number is too low, or a file is missing.
    """
    for key, least in LEAST.items():
        if getattr(settings, key) < least:
            raise rental_error(f"A setting is below {least}.", key=key.replace("_", "-"), got=getattr(settings, key))
    if settings.requirements and not Path(settings.requirements).is_file():
        raise rental_error("There is no such file of requirements.", key="requirements", got=settings.requirements)


def check_files(workflow: Any, jobs: Iterable[Job], kept_back: KeptBack) -> None:
    """Refuse files that cannot travel: what is outside of the workflow's folder, and inputs with secrets.

    Args:
        workflow: Snakemake's.
        jobs: Those that are to run, as far as they are known.
        kept_back: What stays here, in the workflow's folder.

    Raises:
        RentalError: If there is one.
    """
    for path in _local([*workflow.included, *workflow.configfiles]):
        inside(path, kept_back.root)
    # Many jobs may read the same thousand files.
    checked: set[str] = set()
    for job in jobs:
        try:
            job_files(job, kept_back.root)
            for path in set(inputs_of(job)) - checked:
                kept_back.check_input(path)
                checked.add(path)
            for path in _scripts(job):
                inside(path, kept_back.root)
        except RentalError as error:
            raise RentalError(f"{name_of(job)}: {error}") from None


def planned_jobs(jobs: Sequence[Job], wanted: Callable[[Job], WantedNode]) -> tuple[list[Planned], list[str]]:
    """The jobs whose nodes are known, and lines about the others.

    Args:
        jobs: Those that are to run.
        wanted: Gives the node of a job.
    """
    planned, lines = [], []
    for job in jobs:
        # Snakemake looks again when the job is to run.
        later = sorted({name for each in jobs_of(job) for name in undecided(each.resources)})
        if later:
            lines.append(f"  {name_of(job)}: told when the files are there that decide its {' and '.join(later)}")
        else:
            planned.append(Planned(name_of(job), wanted(job), minutes_of(job)))
    return planned, lines


def _scripts(job: Job) -> Iterator[str]:
    for each in jobs_of(job):
        given = each.rule.script or each.rule.notebook
        if given:
            yield from _local([given if os.path.isabs(given) else each.rule.basedir.join(given)])


def _local(files: Iterable[Any]) -> Iterator[str]:
    """The files of this machine: those of another place are no paths, or have its address."""
    for file in files:
        if isinstance(file, str | os.PathLike) and "://" not in os.fspath(file):
            yield os.fspath(file)
