"""Snakemake with the executor in a process of its own, and a cloud that notes what it is asked for.

usage: driven.py NOTES [--broken] ARGUMENT...    with Snakemake's own arguments
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from snakemake.cli import main as snakemake

from snakemake_executor_plugin_skypilot import cloud, executor, preflight
from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask, Submitted
from snakemake_executor_plugin_skypilot.errors import CancelledError
from snakemake_executor_plugin_skypilot.running_node import RunningNode

NOTES = Path(sys.argv[1])
IS_BROKEN = sys.argv[2] == "--broken"
CANCELLED = threading.Event()


def _note(line: str) -> None:
    with NOTES.open("a") as file:
        file.write(line + "\n")


def _launch(_: Cloud, task: NodeTask, node: str, log: Any) -> Submitted:
    _note(f"launch {node} {task.name}")
    log.write(f"{task.name} is here\n")
    return Submitted(1, "a node", 36.0, cast(RunningNode, _Running(task.name)))


class _Running:
    """A node that runs a job, whose name says what becomes of it."""

    def __init__(self, job: str) -> None:
        self._job = job

    def follow(self, *_: object, **__: object) -> bool:
        if self._job.startswith("wait"):
            CANCELLED.wait(60)
            raise CancelledError
        if self._job.startswith("surprise"):
            raise RuntimeError("nobody foresaw it")
        return True

    def bring(self, paths: list[str], into: Path, **_: object) -> None:
        for path in paths:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).touch()


def _cancel(_: Cloud) -> None:
    _note("cancel")
    CANCELLED.set()
    if IS_BROKEN:
        raise ConnectionError("the server is gone")


REPLACED: dict[str, Any] = {
    "launch": _launch,
    "start": _launch,
    "cancel": _cancel,
    "end": lambda _, node: _note(f"end {node}"),
    "nodes": lambda *_, **__: [],
}

if __name__ == "__main__":
    sky = SimpleNamespace(catalog=None)
    with (
        patch.multiple(Cloud, **REPLACED),
        patch.object(executor, "import_sky", lambda: sky),
        patch.object(cloud, "import_sky", lambda: sky),
        patch.object(preflight, "check_access"),
    ):
        arguments = sys.argv[3:] if IS_BROKEN else sys.argv[2:]
        snakemake(["--executor", "skypilot", "--jobs", "8", "--local-cores", "1", *arguments])
