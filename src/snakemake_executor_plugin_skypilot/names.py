"""Names of nodes (smk-PROJECT-PLACE-RUN-NUMBER: a run finds its own, and what an earlier one left) and of logs."""

from __future__ import annotations

import hashlib
import re
import socket
import uuid
from pathlib import Path

PREFIX = "smk"
# The plugin's folder beside Snakemake's own files.
STATE = "skypilot"


def project_name(directory: Path, chosen: str | None = None) -> str:
    """What the names of a project's nodes begin with, up to the run.

    It holds the chosen name or the folder's, and four digits of where the folder is, so that two checkouts of a
    workflow do not take each other's nodes for their own.
    """
    directory = directory.resolve()
    place = hashlib.sha256(f"{socket.gethostname()}:{directory}".encode()).hexdigest()[:4]
    return f"{PREFIX}-{_plain(chosen or directory.name)[:20]}-{place}"


def new_run() -> str:
    """The name of a run."""
    return uuid.uuid4().hex[:6]


def node_name(project: str, run: str, number: int) -> str:
    """The name of a node."""
    return f"{project}-{run}-{number}"


def run_of(name: str, project: str) -> str | None:
    """The run that rented a node; None if it is not of this project."""
    found = re.fullmatch(rf"{re.escape(project)}-([0-9a-f]{{6}})-\d+", name)
    return found.group(1) if found else None


def node_of_pod(name: str, project: str) -> str | None:
    """The node of a project that a pod belongs to, if any: to its name SkyPilot adds the user's and the pod's part."""
    found = re.fullmatch(rf"({re.escape(project)}-[0-9a-f]{{6}}-\d+)-.*", name)
    return found.group(1) if found else None


def job_name(rule: str, wildcards: dict[str, str]) -> str:
    """The name of a job in SkyPilot's queue: rule and wildcards, as far as SkyPilot allows their letters.

    It wants ASCII letters and digits at both ends, and of other signs two in a row at most.
    """
    plain = re.sub(r"[^\w.-]+", "-", ".".join([rule, *wildcards.values()]), flags=re.ASCII)
    short = re.sub(r"([._-])[._-]{2,}", r"\1", plain).lstrip("._-")[:100]
    return short.rstrip("._-") or "job"


def log_path(state: Path, rule: str, job: str, unique: str) -> Path:
    """Where the output of a job is kept.

    Args:
        state: The plugin's folder.
        rule: The job's rule.
        job: The job's name.
        unique: Run, number and attempt, between dots.
    """
    return state / "logs" / rule / f"{job}.{unique}.log"


def kept_logs(state: Path) -> list[tuple[str, Path]]:
    """The kept output of jobs, as the job's name and the file, the latest last."""
    paths = sorted(state.glob("logs/*/*.log"), key=lambda path: path.stat().st_mtime)
    return [(path.name.rsplit(".", 4)[0], path) for path in paths]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "workflow"
