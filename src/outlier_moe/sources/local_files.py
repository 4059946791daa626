"""The state of local sources, so that a changed file counts as another source."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from outlier_moe.config.registry import (
    CheckpointSource,
    CorpusSource,
    DirectorySource,
    FilesSource,
    GgufSource,
    ModelSource,
)
from outlier_moe.tables.contents import DigestMemo


def matching_files(pattern: str) -> list[Path]:
    """The files of a path or a glob pattern, by name.

    A path that exists is no pattern, whatever brackets it has, nor is the folder that a pattern is of.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    folder = next((above for above in path.parents if above.is_dir()), Path())
    found = sorted(glob.glob(str(Path(glob.escape(str(folder)), path.relative_to(folder))), recursive=True))
    return [path for path in map(Path, found) if path.is_file()]


def what_lies_at(pattern: str) -> str:
    """What is found instead of the files of a path or pattern, for a message."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        kinds = sorted({inside.suffix for inside in path.iterdir() if inside.is_file() and inside.suffix})
        return f"a folder, with files {', '.join(kinds[:6])}" if kinds else "a folder without files"
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    return f"nothing there, seen from {Path.cwd()}"


def local_state(source: ModelSource | CorpusSource | None, digests: DigestMemo) -> str:
    """Name, size and digest of each file of a local source; empty for other sources, and if it is missing.

    Args:
        source: The source.
        digests: Those of files that did not change since they were read: a checkpoint takes too long for each plan.
    """
    match source:
        case DirectorySource() | CheckpointSource():
            files = [path for path in source.path.expanduser().glob("*") if path.is_file()]
        case GgufSource():
            path = source.path.expanduser()
            # Its parts, and of other models beside it none.
            own = "" if path.is_dir() else glob.escape(re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name))
            folder = path if path.is_dir() else path.parent
            files = [file for file in folder.glob(f"{own}*.gguf") if file.is_file()]
            if source.tokenizer is not None:
                files += [file for file in source.tokenizer.expanduser().glob("*") if file.is_file()]
        case FilesSource():
            files = [path for pattern in source.paths for path in matching_files(pattern)]
        case _:
            return ""
    states = [f"{path} {path.stat().st_size} {digests.sha256_of(path)}" for path in sorted(files)]
    digests.save()
    return "; ".join(states)
