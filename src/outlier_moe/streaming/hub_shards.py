"""The shards of a checkpoint on the hub: downloaded ahead of their use, and deleted after it if the disk is small."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from tqdm import tqdm

from outlier_moe.machine.disk_space import check_room, explain_full_disk, free_bytes
from outlier_moe.sources.checkpoint_dtype import settled_values
from outlier_moe.sources.checkpoint_files import INDEX, WEIGHTS, read_index
from outlier_moe.sources.checkpoint_map import place_tensors
from outlier_moe.sources.hub import retry
from outlier_moe.sources.hub_answers import explain_refusals, token
from outlier_moe.sources.models import open_checkpoint
from outlier_moe.sources.origin import Origin, read_origin
from outlier_moe.sources.safetensors_header import read_header
from outlier_moe.streaming.shards import LocalShards, ShardSource

log = logging.getLogger(__name__)

# A single connection to the hub's storage does not fill the line of a rented node.
N_DOWNLOADS = 4

# The one that computes and two more, so that a line is not left idle by shards as large as a layer: of Kimi-K2, whose
# shards have 17 GB, five are on the disk at a time.
N_LAYERS_ON_DISK = 3

# Where it is left to this module whether shards are kept: what is not filled of the disk.
LEFT_FREE_BYTES = 5 * 10**9


def fetched_shards(model_directory: Path, weights: Path, *, evict: bool | Literal["auto"] = False) -> ShardSource:
    """The weights of a fetched model, wherever they lie.

    Args:
        model_directory: What `fetch_model` wrote.
        weights: A folder for shards from the hub that are deleted after their last use.
        evict: Whether shards go there and not into the hub's cache; `auto` if the disk of the cache has no room for
            all. What the cache holds already, and what lies in the user's folders, is used where it is and stays.

    Raises:
        StudyError: If the weights are not whole, or the hub's are refused.
    """
    origin = read_origin(model_directory)
    if origin.checkpoint is not None:
        return LocalShards(open_checkpoint(model_directory))
    evicts = _no_room_for_all(origin, weights) if evict == "auto" else evict
    return HubShards(origin, model_directory, evict_from=weights if evicts else None)


def _no_room_for_all(origin: Origin, weights: Path) -> bool:
    """Whether the disk of the hub's cache is too small for what it lacks of a model; a run that evicted goes on so."""
    if weights.exists():
        return True
    lacking = [
        file.size or 0
        for file in origin.files
        if file.name.endswith(".safetensors") and not _in_cache(origin.name, file.name, str(origin.revision))
    ]
    return sum(lacking) + LEFT_FREE_BYTES > free_bytes(Path(constants.HF_HUB_CACHE))


def _in_cache(repo: str, name: str, commit: str) -> Path | None:
    """A file in the hub's cache, if it is there."""
    path = try_to_load_from_cache(repo, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


class HubShards:
    """A checkpoint on the hub at one commit.

    Where shards are evicted, no more than those of three layers, and of what lies outside the layers, are on the disk
    at a time (and those which a later layer needs as well, where a checkpoint does not keep to the order of the
    layers).

    Args:
        origin: Where the model came from.
        directory: A folder with its configuration and, if it has one, the index of its shards.
        evict_from: A folder for the shards, which are this class's to delete; None leaves them in the hub's cache.
    """

    def __init__(self, origin: Origin, directory: Path, *, evict_from: Path | None = None) -> None:
        self._repo, self._commit = origin.name, str(origin.revision)
        self._key = f"models.{origin.model}.source"
        self._sizes = {file.name: file.size or 0 for file in origin.files}
        self._dtype = origin.dtype
        self._directory = directory
        # As the hub's client gives paths.
        self._evict_from = evict_from and evict_from.resolve()
        self._stop = Event()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(N_DOWNLOADS, thread_name_prefix="shard-download")
        self._downloads: dict[str, Future[Path]] = {}
        self._portions: Sequence[Collection[str]] = ()
        self._n_finished = 0
        self._remove_halves()
        self._weight_map = self._read_weight_map()

    def _remove_halves(self) -> None:
        """Remove partial downloads of a killed run, which cannot be continued."""
        if self._evict_from is not None:
            for path in (self._evict_from / ".cache" / "huggingface" / "download").glob("*.incomplete"):
                path.unlink(missing_ok=True)

    def _read_weight_map(self) -> Mapping[str, str]:
        if WEIGHTS not in self._sizes and INDEX in self._sizes:
            return read_index(self._directory / INDEX)
        shards = sorted(name for name in self._sizes if name.endswith(".safetensors"))
        self._check_room(shards)
        return place_tensors(self._directory, {shard: read_header(self.path(shard)) for shard in shards})

    @property
    def _place(self) -> Path:
        """The folder that shards are downloaded into."""
        return self._evict_from or Path(constants.HF_HUB_CACHE)

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

    def values_by_dtype(self) -> Mapping[str, int]:
        """The dtype that was settled when the model was fetched.

        Raises:
            StudyError: If neither the configuration nor the hub said it then.
        """
        return settled_values(self._dtype, self._directory)

    def plan(self, portions: Sequence[Collection[str]]) -> None:
        """Begin to download what the first portions need; the very first one is needed to the end.

        Raises:
            StudyError: If the disk has no room for as much as will be on it at a time.
        """
        self._portions = portions
        self._n_finished = 0
        needed = set(chain.from_iterable(portions))
        if self._evict_from is not None:
            # What an interrupted run was about to delete.
            for path in self._evict_from.glob("*.safetensors"):
                if path.name not in needed:
                    path.unlink()
        self._check_room(max(map(self._on_disk, range(1, len(portions))), key=self._n_bytes, default=needed))
        self._download_ahead()

    def _on_disk(self, portion: int) -> set[str]:
        """The files that may be on the disk while a portion is in use."""
        if self._evict_from is None:
            return set(chain.from_iterable(self._portions))
        begun = chain.from_iterable(self._portions[: portion + N_LAYERS_ON_DISK])
        return {*begun} & {*self._portions[0], *chain.from_iterable(self._portions[portion:])}

    def _n_bytes(self, shards: Collection[str]) -> int:
        return sum(self._sizes.get(shard, 0) for shard in shards)

    def _check_room(self, shards: Collection[str]) -> None:
        absent = [shard for shard in shards if self._cached(shard) is None and not (self._place / shard).exists()]
        remedy = "Make room where the results go."
        if self._evict_from is None:
            remedy = "Make room in the hub's cache (HF_HOME), or move it. record_outliers.evict: auto keeps the shards"
            remedy += " of a few layers on the disk and no more."
        check_room(self._place, self._n_bytes(absent), remedy=remedy)

    def _cached(self, shard: str) -> Path | None:
        return _in_cache(self._repo, shard, self._commit)

    def _download_ahead(self) -> None:
        first = 1 + self._n_finished
        stop = len(self._portions) if self._evict_from is None else first + N_LAYERS_ON_DISK
        for portion in [*self._portions[:1], *self._portions[first:stop]]:
            for shard in portion:
                self._submit(shard)

    def _submit(self, shard: str) -> Future[Path]:
        # The thread that reads ahead asks for shards as well.
        with self._lock:
            if shard not in self._downloads:
                self._downloads[shard] = self._pool.submit(self._download, shard)
            return self._downloads[shard]

    def _download(self, shard: str) -> Path:
        if (cached := self._cached(shard)) is not None:
            return cached

        def download() -> str:
            return hf_hub_download(
                self._repo,
                shard,
                revision=self._commit,
                local_dir=self._evict_from,
                token=token(),
                tqdm_class=_silent_bar(self._stop),
            )

        with explain_refusals(self._repo, self._commit, key=self._key), explain_full_disk(self._place):
            path = Path(retry(download))
        log.info("%s is here", shard)
        return path

    def path(self, shard: str) -> Path:
        """A file, waited for if it is not here yet.

        Raises:
            StudyError: If the hub refuses it, or fails to give it time after time.
        """
        return self._submit(shard).result()

    def is_here(self, shard: str) -> bool:
        """Whether a file has been downloaded."""
        download = self._downloads.get(shard)
        return download is not None and download.done() and download.exception() is None

    def finish(self, portion: int) -> None:
        """Delete the files that no later portion needs, and download what comes next."""
        self._n_finished = max(self._n_finished, portion)
        later = self._portions[self._n_finished + 1 :]
        if self._evict_from is not None:
            needed = {*chain.from_iterable(later), *(self._portions[0] if later else ())}
            with self._lock:
                done = [self._downloads.pop(shard) for shard in self._downloads.keys() - needed]
            for path in (download.result() for download in done):
                if path.parent == self._evict_from:
                    path.unlink(missing_ok=True)
        if later:
            self._download_ahead()

    def close(self) -> None:
        """Break off all downloads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class _BrokenOffError(Exception):
    """A download was broken off."""


def _silent_bar(stop: Event) -> type[tqdm[Any]]:
    """A progress bar for the hub's client that shows nothing and can break off a download."""

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: int | float | None = 1) -> None:
            if stop.is_set():
                raise _BrokenOffError

    return SilentBar
