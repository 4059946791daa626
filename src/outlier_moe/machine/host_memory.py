"""How much memory this process may still take: of the machine, or of the control group that it runs in.

A container or a job of a cluster has less than its machine, and is killed when it takes more; what the machine says is
free does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

MEMBERSHIP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


class _Names(NamedTuple):
    """The file names of a version of Linux's control groups."""

    limit: str
    """File with the bytes that a group may hold."""
    used: str
    """File with the bytes that it holds, cached files included."""
    cached: str
    """The line of `memory.stat` with the cached files that the system drops before it kills."""


_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")
_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(*, membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> int:
    """Bytes that this process may still take without swapping and without being killed.

    Args:
        membership: The file in which Linux says which control groups the process is in.
        groups: Where the control groups are mounted.
    """
    of_groups = [left for folder, names in _folders(membership, groups) if (left := _left(folder, names)) is not None]
    return min([psutil.virtual_memory().available, *of_groups])


def _folders(membership: Path, groups: Path) -> Iterator[tuple[Path, _Names]]:
    """The control groups of the process that may limit its memory, and those that they are in."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        home, names = (groups / "memory", _VERSION_1) if controllers else (groups, _VERSION_2)
        group = home / path.lstrip("/")
        # Within a container the path may be the host's, and what is mounted the container's own.
        for folder in (group, *group.parents):
            yield folder, names
            if folder == home:
                break


def _left(folder: Path, names: _Names) -> int | None:
    """Bytes that a group may still take; None if it has no limit."""
    try:
        limit = (folder / names.limit).read_text(encoding="utf-8").strip()
        if limit == "max":
            return None
        used = int((folder / names.used).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + int(stat.get(names.cached, 0)))
