"""Outputs that appear when they are whole: written beside their place and renamed, so that a kill leaves no half."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `directory` when the block ends; an error removes it instead."""
    partial = partial_of(directory)
    remove_orphans(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        put_in_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, directory: Path) -> None:
    """Give a folder that is whole its name; what stood there is removed once the new one is in its place."""
    gone = directory.with_name(f".{directory.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        directory.rename(gone)
    partial.rename(directory)
    shutil.rmtree(gone, ignore_errors=True)


def remove_whole(directory: Path) -> None:
    """Remove a folder, if there is one, in one move: a kill leaves all of it there, or none.

    What a kill leaves of it beside its place goes with the next removal.
    """
    gone = directory.with_name(f".{directory.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if directory.exists():
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; its file takes the place of `path` when the block ends; an error removes it instead."""
    partial = partial_of(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path, *, pid: int | None = None) -> Path:
    """Where a process, this one if no other is named, writes what will be `path`: no other writes there."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid() if pid is None else pid}.partial")


def remove_orphans(path: Path) -> None:
    """Remove what killed processes of this machine have left beside `path`."""
    prefix = f".{path.name}.{_host()}-"
    with suppress(OSError):
        for left in path.parent.iterdir():
            number = left.name.removeprefix(prefix).removesuffix(".partial")
            is_partial = left.name.startswith(prefix) and left.name.endswith(".partial")
            if is_partial and number.isdigit() and not _is_alive(int(number)):
                remove_path(left)


def remove_path(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "here"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # Of another user.
        return True
    return True
