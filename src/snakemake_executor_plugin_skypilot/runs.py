"""Runs of a workflow's folder, and the nodes that earlier ones left."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from snakemake_executor_plugin_skypilot.names import new_run, run_of

# The folder with the files of all runs.
RUNS = "runs"


class RunLock:
    """A run that is alive: a file that its process holds a lock of, which ends with it however it ends.

    Args:
        folder: Where the files of all runs are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = new_run()
        self._path = folder / self.name
        self._file: IO[str] = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """The run has ended, and left nothing."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def is_alive(run: str, folder: Path) -> bool:
    """Whether the process of a run is there."""
    return is_held(folder / run)


def is_held(path: Path) -> bool:
    """Whether a process has a lock of a file, as it does until it ends, however it ends."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def belongs_to_a_run(node: str, state: Path) -> bool:
    """Whether the run that rented a node is there.

    Args:
        node: The node's name.
        state: The plugin's folder beside Snakemake's own files.
    """
    return is_alive(node.split("-")[-2], state / RUNS)


def is_orphan(node: str, project: str, folder: Path) -> bool:
    """Whether a node, by its name, is one of a run of this project that is over."""
    run = run_of(node, project)
    return run is not None and not is_alive(run, folder)


def orphans(nodes: Sequence[Any], project: str, folder: Path) -> list[Any]:
    """Of SkyPilot's nodes those of runs of this project that are over."""
    return [node for node in nodes if is_orphan(node["name"], project, folder)]
