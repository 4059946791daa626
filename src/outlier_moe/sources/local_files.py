"""What lies at a source of this machine, as a plan has to know it: a changed file is another source."""

from __future__ import annotations

import glob
from pathlib import Path

from outlier_moe.registry import CheckpointSource, CorpusSource, DirectorySource, FilesSource, ModelSource


def matching_files(pattern: str) -> list[Path]:
    """The files of a path or a glob pattern, by name."""
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    return [path for path in map(Path, found) if path.is_file()]


def local_state(source: ModelSource | CorpusSource | None) -> str:
    """Name, size and time of each file of a local source; nothing of any other, or if it is not there.

    By size and time, as Snakemake tells its own inputs apart: a checkpoint takes too long to be read for each plan.
    """
    match source:
        case DirectorySource() | CheckpointSource():
            files = [path for path in source.path.expanduser().glob("*") if path.is_file()]
        case FilesSource():
            files = [path for pattern in source.paths for path in matching_files(pattern)]
        case _:
            return ""
    states = [(str(path), path.stat()) for path in sorted(files)]
    return "; ".join(f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states)
