"""The cache folder that studies share, and the SHA-256 of large files."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from outlier_moe.errors import StudyError

log = logging.getLogger(__name__)

# Of files from this size on the SHA-256 is kept; smaller ones take no time.
LARGE_BYTES = 2**26


def cache_folder() -> Path:
    """The cache folder: OUTLIER_MOE_CACHE, otherwise `outlier_moe` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OUTLIER_MOE_CACHE") or Path(caches) / "outlier_moe")


def blob_sha256(path: Path) -> str | None:
    """The SHA-256 of a large file in the hub's cache, where it is the file's name; None for any other file."""
    resolved = path.resolve()
    is_named_so = resolved.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", resolved.name)
    return resolved.name if is_named_so else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, which is read once for each path, size and time: about a second for each GB.

    A file of the hub's cache has it for a name.

    Raises:
        StudyError: If the file cannot be read.
    """
    if (known := blob_sha256(path)) is not None:
        return known
    resolved = path.resolve()
    try:
        state = resolved.stat()
        if state.st_size < LARGE_BYTES:
            return hashlib.sha256(resolved.read_bytes()).hexdigest()
        key = hashlib.sha256(f"{resolved} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
        kept = cache_folder() / "sha256" / key
        if kept.exists():
            return kept.read_text()
        log.info("reading %s for its SHA-256 (%.1f GB)", path, state.st_size / 1e9)
        with resolved.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        remedy = "Make the file readable for this user, and look to the disk that it lies on."
        raise StudyError("A file of a model cannot be read.", file=path, got=str(error), remedy=remedy) from error
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{key}.{os.getpid()}")
    partial.write_text(digest)
    partial.replace(kept)
    return digest
