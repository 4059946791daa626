"""Where the shards of a checkpoint come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from outlier_moe.errors import StudyError
from outlier_moe.streaming.safetensors_files import FETCH_AGAIN, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@runtime_checkable
class ShardSource(Protocol):
    """The files of one checkpoint, some of which may come only when they are needed."""

    @property
    def directory(self) -> Path:
        """A folder with the configuration."""
        ...

    @property
    def identity(self) -> str:
        """What changes when the weights do."""
        ...

    @property
    def weight_map(self) -> Mapping[str, str]:
        """The file that holds each tensor."""
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
        StudyError: If it holds no safetensors file, or lacks one that the index names.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._weight_map = self._read_weight_map()

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
        """The file that holds each tensor: of the single file if there is one, else of the index."""
        return self._weight_map

    def _read_weight_map(self) -> Mapping[str, str]:
        single = self._directory / SINGLE_FILE
        if single.is_file():
            return dict.fromkeys(read_header(single), SINGLE_FILE)
        index = self._directory / INDEX_FILE
        weight_map = read_index(index)
        for shard in sorted(set(weight_map.values())):
            if not (self._directory / shard).is_file():
                raise StudyError(
                    "The index of the checkpoint names a file that is not there.",
                    file=index,
                    key=next(name for name, file in weight_map.items() if file == shard),
                    expected=self._directory / shard,
                    remedy=FETCH_AGAIN,
                )
        return weight_map

    def plan(self, portions: Sequence[Collection[str]]) -> None:
        """All files are here."""

    def path(self, shard: str) -> Path:
        """The file."""
        return self._directory / shard

    def is_here(self, shard: str) -> bool:
        """They all are."""
        return True

    def finish(self, portion: int) -> None:
        """What is the user's is not removed."""

    def close(self) -> None:
        """Nothing runs in the background."""


def read_index(path: Path) -> Mapping[str, str]:
    """The file that holds each tensor, as the index of a sharded checkpoint says.

    Raises:
        StudyError: If there is no index, or it does not say.
    """
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(
            "The checkpoint has neither a safetensors file nor an index of several.",
            file=path.parent,
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            remedy="Take a checkpoint in safetensors format; pickled weights are never read.",
        ) from None
    except ValueError as error:
        raise _no_index(path, str(error)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _no_index(path, "no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise _no_index(path, f"{shard!r} for the file of {name}")
    return weight_map


def _no_index(path: Path, got: str) -> StudyError:
    return StudyError(
        "The index of the checkpoint cannot be read.",
        file=path,
        key="weight_map",
        expected="the name of a file beside the index for each tensor",
        got=got,
        remedy=FETCH_AGAIN,
    )
