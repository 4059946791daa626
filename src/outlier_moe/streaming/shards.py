"""Where the shards of a checkpoint come from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from outlier_moe.sources.checkpoint_dtype import values_by_dtype
from outlier_moe.sources.checkpoint_map import map_checkpoint


@runtime_checkable
class ShardSource(Protocol):
    """The files of one checkpoint, some of which may come only when they are needed."""

    @property
    def directory(self) -> Path:
        """A folder with the configuration."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes when the weights do."""
        ...

    @property
    def weight_map(self) -> Mapping[str, str]:
        """The file that holds each tensor."""
        ...

    def values_by_dtype(self) -> Mapping[str, int]:
        """How many values there are of each of the format's dtypes, as far as they can be told."""
        ...

    def plan(self, portions: Sequence[Collection[str]]) -> None:
        """Say which files each portion of the checkpoint needs, in the order of use; the first stays in use."""
        ...

    def path(self, shard: str) -> Path:
        """A file, waited for if it is not here yet."""
        ...

    def is_here(self, shard: str) -> bool:
        """Whether a file can be read without waiting."""
        ...

    def finish(self, portion: int) -> None:
        """Say that a portion, counted as in the plan, is no longer in use."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


class LocalShards:
    """A checkpoint in a folder.

    Args:
        directory: The folder, in the hub's layout.

    Raises:
        StudyError: As `map_checkpoint`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        found = map_checkpoint(directory)
        self._weight_map, self._values = found.file_of, values_by_dtype(found.counting())

    @property
    def directory(self) -> Path:
        """The folder."""
        return self._directory

    @property
    def identity(self) -> str:
        """A hash of the files' names, sizes and times."""
        digest = hashlib.sha256()
        for shard in sorted(set(self.weight_map.values())):
            stat = self.path(shard).stat()
            digest.update(f"{shard} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    @property
    def weight_map(self) -> Mapping[str, str]:
        """The file that counts for each tensor."""
        return self._weight_map

    def values_by_dtype(self) -> Mapping[str, int]:
        """How many values there are of each of the format's dtypes."""
        return self._values

    def plan(self, portions: Sequence[Collection[str]]) -> None:
        """All files are here."""

    def path(self, shard: str) -> Path:
        """The file."""
        return self._directory / shard

    def is_here(self, shard: str) -> bool:
        """They all are."""
        return True

    def finish(self, portion: int) -> None:
        """Removes nothing: the files are the user's."""

    def close(self) -> None:
        """Nothing runs in the background."""
