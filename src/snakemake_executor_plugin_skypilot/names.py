"""Names of nodes: smk-PROJECT-RUN-NUMBER, so that a run finds its own, and those that an earlier run left."""

from __future__ import annotations

import hashlib
import re
import socket
import uuid
from pathlib import Path

PREFIX = "smk"


def project_name(directory: Path, chosen: str | None = None) -> str:
    """What the names of a project's nodes begin with, up to the run.

    Without a chosen name it holds the folder's, and four digits of where the folder is, so that two checkouts of a
    workflow do not take each other's nodes for their own.
    """
    if chosen is not None:
        return f"{PREFIX}-{_plain(chosen)}"
    place = f"{socket.gethostname()}:{directory.resolve()}"
    return f"{PREFIX}-{_plain(directory.resolve().name)[:20]}-{hashlib.sha256(place.encode()).hexdigest()[:4]}"


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


def job_name(rule: str, wildcards: dict[str, str]) -> str:
    """The name of a job in SkyPilot's queue: rule and wildcards."""
    return re.sub(r"[^\w.-]+", "-", ".".join([rule, *wildcards.values()]))[:100]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "workflow"
