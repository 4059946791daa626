"""A stage of the workflow as a process of its own.

It is alone at its outputs: another that wants to write them waits. What it made outlives a kill of Snakemake, which
would have it made again: it is kept beside its place until Snakemake knows of it. And a stage that is killed leaves a
note, so that the next run, and the end of this one, can say so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from outlier_moe.tables.whole_outputs import remove_path

log = logging.getLogger(__name__)

# Snakemake's own note of when it looked at a folder.
_TIMESTAMP = ".snakemake_timestamp"


@runtime_checkable
class ScriptJob(Protocol):
    """The parts of Snakemake's object `snakemake` that a stage needs."""

    input: Any
    """Files that are read."""
    output: Any
    """Files and folders that are written."""
    params: Any
    """Parameters that the figures depend on."""


class Stage(NamedTuple):
    """One job."""

    log: Path
    """Its log file."""
    inputs: tuple[Path, ...]
    """Files that are read."""
    outputs: tuple[Path, ...]
    """Files and folders that are written."""
    params: Mapping[str, Any]
    """Parameters that the figures depend on, beside the inputs."""

    @staticmethod
    def of(job: ScriptJob, log: Path) -> Stage:
        """The stage of a script's job."""
        params = {name: value for name, value in job.params.items()}
        return Stage(log, tuple(map(Path, job.input)), tuple(map(Path, job.output)), params)

    @property
    def identity(self) -> str:
        """A digest of what it reads, by name, size and time, and of its parameters."""
        states = [state for path in self.inputs for state in _states(path)]
        described = json.dumps([[str(path) for path in self.outputs], states, self.params], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()


class StageDoneError(Exception):
    """Raised when a stage need not run, since its outputs are there."""


@contextmanager
def alone(stage: Stage) -> Iterator[None]:
    """Run a stage while no other process writes its outputs.

    Raises:
        StageDoneError: If a process that Snakemake does not know of has made them of the same.
    """
    with _locked(stage.outputs[0]), _noted(stage):
        identity = stage.identity
        if _take_up(stage.outputs, identity):
            log.warning("%s was made by a run that was killed: it is taken up", stage.outputs[0])
            raise StageDoneError
        yield
        _keep(stage.outputs, identity)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the lock of an output; the system releases it when the process ends in any way."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(output, "lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("%s is being written by another process, perhaps of a run that was killed: waiting", output)
            lock.acquire(poll_interval=0.2)
    except NotImplementedError:
        log.warning("%s: this disk has no locks; let no two runs write to it at a time", output.parent)
    try:
        yield
    finally:
        lock.release()


def _take_up(outputs: Sequence[Path], identity: str) -> bool:
    """Take up outputs that a killed run has kept, if they are of the same job; otherwise remove them."""
    kept = _beside(outputs[0], "kept.json")
    try:
        is_same = json.loads(kept.read_text())["identity"] == identity
    except (OSError, ValueError, KeyError, TypeError):
        is_same = False
    places = [_beside(output, "kept") for output in outputs]
    if is_same and all(place.exists() for place in places):
        for place, output in zip(places, outputs, strict=True):
            remove_path(output)
            place.rename(output)
        kept.unlink()
        return True
    forget(outputs)
    return False


def _keep(outputs: Sequence[Path], identity: str) -> None:
    """Keep hard links to the outputs, since Snakemake removes outputs after a kill."""
    forget(outputs)
    with suppress(OSError):
        for output in outputs:
            link_tree(output, _beside(output, "kept"))
        note = _beside(outputs[0], "kept.json")
        note.write_text(json.dumps({"identity": identity, "outputs": [str(output) for output in outputs]}))
        return
    # A disk without links, or a full one.
    forget(outputs)


def forget(outputs: Sequence[Path]) -> None:
    """Remove kept outputs, the note first: without it they are not taken up."""
    remove_path(_beside(outputs[0], "kept.json"))
    for output in outputs:
        remove_path(_beside(output, "kept"))


def link_tree(source: Path, copy: Path, *, or_copy: bool = False) -> None:
    """Hard-link a file, or all files of a folder, to a second place.

    Args:
        source: The file or folder.
        copy: The second place.
        or_copy: Whether files are copied where the disk has no links.

    Raises:
        OSError: If the disk has no links, and they are not to be copied.
    """

    def link(one: str | Path, other: str | Path) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            if not or_copy:
                raise
            shutil.copy2(one, other)

    if source.is_dir():
        shutil.copytree(source, copy, copy_function=link, symlinks=True, ignore=shutil.ignore_patterns(_TIMESTAMP))
    else:
        link(source, copy)


@contextmanager
def _noted(stage: Stage) -> Iterator[None]:
    """Leave a note beside the log while a stage runs; it stays only after a kill."""
    note = _beside(stage.log, "running.json")
    if note.exists():
        log.warning("%s", killed_sentence(read_note(note)))
    running = {"stage": stage.log.parent.name, "pid": os.getpid(), "host": socket.gethostname()}
    with suppress(OSError):
        note.write_text(json.dumps({**running, "log": str(stage.log), "output": str(stage.outputs[0])}))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def killed_stages(logs: Path) -> list[str]:
    """A sentence for each stage that was killed and has not run since: the likely cause, and the remedy.

    Args:
        logs: The folder of all logs.
    """
    found = (read_note(note) for note in sorted(logs.rglob(".*.running.json")))
    return [killed_sentence(stage) for stage in found if not _is_running(stage)]


def killed_sentence(stage: Mapping[str, str]) -> str:
    """The message about a stage that was killed."""
    remedy = "run again with fewer jobs at a time (--jobs), or on a machine with more memory"
    if stage.get("stage") in ("record_outliers", "record_shard"):
        remedy = "set `record_outliers: {mode: streamed}`, which holds one layer at a time, and run again"
    return (
        f"{stage.get('output', '?')}: the process that wrote it died with SIGKILL, or its machine went down. "
        f"Most often memory ran out and the system killed it: {remedy}; what was finished is kept."
    )


def _is_running(stage: Mapping[str, str]) -> bool:
    lock = FileLock(_beside(Path(stage.get("output", "?")), "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def read_note(note: Path) -> dict[str, Any]:
    """The object of a JSON file that this project wrote; an empty one if it cannot be read."""
    try:
        read = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _states(path: Path) -> list[list[Any]]:
    """Name, size and time of each file at a path."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = ((file, file.stat()) for file in files if file.is_file() and file.name != _TIMESTAMP)
    return [[str(file), state.st_size, state.st_mtime_ns] for file, state in states]
