"""Files on their way from a node: all of a job in one connection, each in its place only when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A connection over which nothing comes for so long is broken.
SILENCE_S = 120
# Files that vanished while they were copied: a job that runs replaces what it would go on from.
VANISHED = 24


class Address(NamedTuple):
    """How a node is reached."""

    ssh: Sequence[str]
    """The command with its options, quoted for a shell."""
    host: str
    """User and host."""


def copy_from(
    address: Address, folder: str, paths: Iterable[str], into: Path, cancelled: threading.Event
) -> str | None:
    """Copy files and folders of a node, those that it has; what is wrong if that cannot be done.

    Not by SkyPilot's own rsync: that takes one path a connection, and leaves out what a .gitignore among them names.

    Args:
        address: The node.
        folder: A folder of its user's home.
        paths: What is wanted, as paths in that folder.
        into: A folder here, where they come to the same paths; what an earlier try left there is gone on from.
        cancelled: Breaks it off.
    """
    command = ["rsync", "-rlpt", "--partial", f"--timeout={SILENCE_S}", "--from0", "--files-from=-"]
    command += ["--ignore-missing-args", "--rsh", " ".join(address.ssh), f"{address.host}:{folder}/", f"{into}/"]
    names: str | None = "\0".join(paths)
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, **options) as process:
        while True:
            try:
                said, _ = process.communicate(names, timeout=1)
                break
            except subprocess.TimeoutExpired:
                names = None
                if cancelled.is_set():
                    # With its ssh, which holds the pipe open.
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode in (0, VANISHED):
        return None
    return said.strip() or f"rsync ended with code {process.returncode}"


def put_in_place(arrived: Path, paths: Iterable[str], root: Path) -> None:
    """Move what has arrived to where it belongs, in place of what is there.

    Args:
        arrived: The folder it came into.
        paths: Paths in that folder; one that did not come is left as it is.
        root: The folder where they belong.
    """
    # A folder before what lies in it.
    for path in sorted(paths, key=lambda path: Path(path).parts):
        source, place = arrived / path, root / path
        if not os.path.lexists(source):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(source, place)
        if place.is_symlink():
            continue
        # A node's clock is not this machine's: an output older than its input would be made again.
        os.utime(place)
        if (timestamp := place / ".snakemake_timestamp").is_file():
            os.utime(timestamp)


def _replace(source: Path, place: Path) -> None:
    if source.is_dir() or place.is_dir():
        remove(place)
    # A protected folder cannot be moved.
    modes = _allow_writing(source)
    try:
        source.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The place is on another disk.
        beside = place.with_name(f".{place.name}.arriving")
        remove(beside)
        shutil.move(source, beside)
        beside.replace(place)
    # What lies deeper first: the folder above it may then be closed.
    for path in reversed(modes):
        (place / path).chmod(modes[path])


def _allow_writing(folder: Path) -> dict[Path, int]:
    """Allow the owner all in a folder and those in it; of those where that was not so, what was, the upper first."""
    modes: dict[Path, int] = {}
    below = [folder] if folder.is_dir() and not folder.is_symlink() else []
    while below:
        path = below.pop()
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            path.chmod(mode | stat.S_IRWXU)
            modes[path.relative_to(folder)] = mode
        with os.scandir(path) as entries:
            below += [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return modes


def forget(resume: Iterable[str], root: Path, *, kept: Iterable[str]) -> None:
    """Remove what a job would have gone on from, once it has succeeded: another run of it begins anew.

    Args:
        resume: Its paths.
        root: The workflow's folder, which they lie in.
        kept: The job's results; what is one of them, holds one or lies in one stays.
    """
    results = [Path(path) for path in kept]
    for path in map(Path, resume):
        if not any(path.is_relative_to(result) or result.is_relative_to(path) for result in results):
            remove(root / path)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, protected or not; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        _allow_writing(path)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
