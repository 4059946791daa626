"""Snakemake with the executor in a process of its own, and a cloud that notes what it is asked for.

usage: driven.py NOTES [--broken | --stuck | --real] ARGUMENT...    with Snakemake's own arguments

With --broken the cloud fails when it is told to stop, with --stuck when it is to end a node. With --real a node is a
folder beside NOTES, `nodes/NAME`, gets what is sent, and runs the job's own script; else it gives back empty files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from snakemake.cli import main as snakemake

from snakemake_executor_plugin_skypilot import cloud, executor, preflight
from snakemake_executor_plugin_skypilot.arriving import put_in_place
from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask, Submitted
from snakemake_executor_plugin_skypilot.errors import CancelledError
from snakemake_executor_plugin_skypilot.running_node import RunningNode

NOTES = Path(sys.argv[1])
MODE = sys.argv[2] if sys.argv[2] in ("--broken", "--stuck", "--real") else None
CANCELLED = threading.Event()


def _note(line: str) -> None:
    with NOTES.open("a") as file:
        file.write(line + "\n")


def _launch(_: Cloud, task: NodeTask, node: str, log: Any) -> Submitted:
    _note(f"launch {node} {task.name}")
    log.write(f"{task.name} is here\n")
    running = _RealNode(task, NOTES.parent / "nodes" / node) if MODE == "--real" else _Running(task.name)
    return Submitted(1, "a node", 36.0, cast(RunningNode, running))


class _Awake:
    """A node that does not end itself."""

    def kept_awake(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Running(_Awake):
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


class _RealNode(_Awake):
    """A folder in which a job's script runs."""

    def __init__(self, task: NodeTask, home: Path) -> None:
        self._task, self._home = task, home
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", f"{task.folder}/.", home], check=True)

    def follow(self, _: int, log: Any, **__: object) -> bool:
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        environment = {"PATH": path, "HOME": str(NOTES.parent), **self._task.secrets}
        command = ["bash", "-c", self._task.run]
        done = subprocess.run(
            command, cwd=self._home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        log.write(done.stdout)
        return done.returncode == 0

    def bring(self, paths: list[str], into: Path, *, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        command = ["rsync", "-rlpt", "--from0", "--files-from=-", "--ignore-missing-args", f"{self._home}/"]
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            subprocess.run([*command, f"{folder}/"], input="\0".join(paths), text=True, check=True)
            put_in_place(Path(folder), paths, into)


class _Catalog:
    """A cloud with one node, which has no accelerator."""

    def list_accelerators(self, **_: object) -> dict[str, list[Any]]:
        return {}

    def validate_region_zone(self, *place: str | None, **_: object) -> tuple[str | None, ...]:
        return place

    def get_default_instance_type(self, **_: object) -> str:
        return "a node"

    def get_hourly_cost(self, *_: object, **__: object) -> float:
        return 36.0


def _cancel(_: Cloud) -> None:
    _note("cancel")
    CANCELLED.set()
    if MODE == "--broken":
        raise ConnectionError("the server is gone")


def _end(_: Cloud, node: str) -> None:
    _note(f"end {node}")
    if MODE == "--stuck":
        raise ConnectionError(f"refused: {os.environ['RUNPOD_API_KEY']}")


REPLACED: dict[str, Any] = {
    "launch": _launch,
    "start": _launch,
    "cancel": _cancel,
    "end": _end,
    "nodes": lambda *_, **__: [],
    "strays": lambda *_: {},
}

if __name__ == "__main__":
    sky = SimpleNamespace(catalog=_Catalog())
    with (
        patch.multiple(Cloud, **REPLACED),
        patch.object(executor, "import_sky", lambda: sky),
        patch.object(cloud, "import_sky", lambda: sky),
        patch.object(preflight, "check_access"),
    ):
        arguments = sys.argv[2:] if MODE is None else sys.argv[3:]
        snakemake(["--executor", "skypilot", "--jobs", "8", "--local-cores", "1", *arguments])
