"""The shards of a checkpoint on the hub: downloaded ahead of their use, and deleted after it if the disk is small."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Any

from huggingface_hub import hf_hub_download
from tqdm import tqdm

from outlier_moe.sources.hub import explained, patiently, token
from outlier_moe.streaming.safetensors_files import read_header
from outlier_moe.streaming.shards import INDEX_FILE, SINGLE_FILE, read_index

log = logging.getLogger(__name__)

# A single connection to the hub's storage does not fill the line of a rented node.
N_DOWNLOADS = 4

# The portion whose layer computes, and the next one.
N_LAYERS_ON_DISK = 2


class HubShards:
    """A checkpoint on the hub at one commit.

    With `evict` no more than the shards of two layers, and of what lies outside the layers, are on the disk at a time
    (and those which a later layer needs as well, where a checkpoint does not keep to the order of the layers).

    Args:
        repo: The repository, as owner/name.
        commit: The commit.
        directory: A folder with its configuration and, if it has one, the index of its shards.
        shards: The folder for the shards, which are this class's to delete.
        key: The registry's key of this source, for messages.
        evict: Whether to delete each shard after its last use.
    """

    def __init__(self, repo: str, commit: str, *, directory: Path, shards: Path, key: str, evict: bool = False) -> None:
        self._repo = repo
        self._commit = commit
        self._directory = directory
        self._shards = shards
        self._key = key
        self._evict = evict
        self._stop = Event()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(N_DOWNLOADS, thread_name_prefix="shard-download")
        self._downloads: dict[str, Future[Path]] = {}
        self._portions: Sequence[Collection[str]] = ()
        self._n_finished = 0
        self._remove_halves()
        self._weight_map = self._read_weight_map()

    def _remove_halves(self) -> None:
        """Remove what a killed run has left: downloads have names of their own, and go on under no other."""
        for path in (self._shards / ".cache" / "huggingface" / "download").glob("*.incomplete"):
            path.unlink(missing_ok=True)

    def _read_weight_map(self) -> Mapping[str, str]:
        if (self._directory / INDEX_FILE).is_file():
            return read_index(self._directory / INDEX_FILE)
        self._submit(SINGLE_FILE)
        return dict.fromkeys(read_header(self.path(SINGLE_FILE)), SINGLE_FILE)

    @property
    def directory(self) -> Path:
        """The folder with the configuration."""
        return self._directory

    @property
    def identity(self) -> str:
        """The repository and its commit."""
        return f"{self._repo}@{self._commit}"

    @property
    def weight_map(self) -> Mapping[str, str]:
        """The file that holds each tensor."""
        return self._weight_map

    def plan(self, portions: Sequence[Collection[str]]) -> None:
        """Begin to download what the first portions need; the very first one is needed to the end."""
        self._portions = portions
        self._n_finished = 0
        self._download_ahead()

    def _download_ahead(self) -> None:
        first = 1 + self._n_finished
        stop = first + N_LAYERS_ON_DISK if self._evict else len(self._portions)
        for portion in [*self._portions[:1], *self._portions[first:stop]]:
            for shard in portion:
                self._submit(shard)

    def _submit(self, shard: str) -> None:
        # The thread that reads ahead asks for shards as well.
        with self._lock:
            if shard not in self._downloads:
                self._downloads[shard] = self._pool.submit(self._download, shard)

    def _download(self, shard: str) -> Path:
        def download() -> str:
            return hf_hub_download(
                self._repo,
                shard,
                revision=self._commit,
                local_dir=self._shards,
                token=token(),
                tqdm_class=_silent_bar(self._stop),
            )

        with explained(self._repo, self._commit, key=self._key):
            path = Path(patiently(download))
        log.info("%s is here", shard)
        return path

    def path(self, shard: str) -> Path:
        """A file, waited for if it is not here yet.

        Raises:
            StudyError: If the hub refuses it, or fails to give it time after time.
        """
        self._submit(shard)
        return self._downloads[shard].result()

    def is_here(self, shard: str) -> bool:
        """Whether a file has been downloaded."""
        download = self._downloads.get(shard)
        return download is not None and download.done() and download.exception() is None

    def finish(self, portion: int) -> None:
        """Delete the files that no later portion needs, and download what comes next."""
        self._n_finished = max(self._n_finished, portion)
        later = self._portions[self._n_finished + 1 :]
        if self._evict:
            needed = {shard for portion in [*later, *(self._portions[:1] if later else [])] for shard in portion}
            for shard in self._downloads.keys() - needed:
                self._downloads.pop(shard).result().unlink(missing_ok=True)
        if later:
            self._download_ahead()

    def close(self) -> None:
        """Break off what is being downloaded."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class _BrokenOffError(Exception):
    """A download of which nobody waits for the end."""


def _silent_bar(stop: Event) -> type[tqdm[Any]]:
    """What the hub's client reports progress to: it shows nothing, and breaks off a download that is to stop."""

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: int | float | None = 1) -> None:
            if stop.is_set():
                raise _BrokenOffError

    return SilentBar
