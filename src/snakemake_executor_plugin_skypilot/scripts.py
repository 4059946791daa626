"""The shell scripts that a node runs: its set-up, and a job."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

# SkyPilot installs uv there on every node.
UV = '"$HOME/.local/bin/uv"'


def environment_path(requirements: Path, python: str) -> str:
    """Where a node has the environment of some requirements: another for each change of them."""
    digest = hashlib.sha256(requirements.read_bytes() + python.encode()).hexdigest()[:12]
    return f"$HOME/.snakemake-environments/{digest}"


def setup_script(requirements: str | None, environment: str | None, python: str, commands: str | None) -> str:
    """What makes a node ready.

    Args:
        requirements: File with pinned requirements, in the workflow's folder.
        environment: Where they are installed, once.
        python: Version of Python.
        commands: What the user wants to run after that.
    """
    lines = []
    if requirements is not None:
        lines += [
            f'if [ ! -e "{environment}/complete" ]; then',
            f'  rm -rf "{environment}"',
            f'  {UV} venv --quiet --python {shlex.quote(python)} "{environment}"',
            f'  {UV} pip install --quiet --python "{environment}/bin/python" --requirement {shlex.quote(requirements)}',
            f'  touch "{environment}/complete"',
            "fi",
            f'export PATH="{environment}/bin:$PATH"',
        ]
    if commands:
        lines.append(commands)
    return "\n".join(["set -e", *lines]) if lines else ""


def run_script(command: str, outputs: Iterable[str], environment: str | None, prelude: str | None) -> str:
    """What runs a job.

    Args:
        command: Snakemake's own, which runs the one job.
        outputs: What the job makes: an earlier job's, on a node that is kept, must not be taken for it.
        environment: The node's environment.
        prelude: What the user wants to run before.
    """
    lines = ["set -eo pipefail"]
    stale = " ".join(map(shlex.quote, outputs))
    if stale:
        lines.append(f"rm -rf -- {stale}")
    if environment is not None:
        lines.append(f'export PATH="{environment}/bin:$PATH"')
    if prelude:
        lines.append(prelude)
    return "\n".join([*lines, command])
