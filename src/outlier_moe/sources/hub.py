"""The Hugging Face hub: a repository's commit and files, and what its refusals mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)

from outlier_moe.errors import StudyError
from outlier_moe.sources.cache import blob_sha256
from outlier_moe.sources.checkpoint_dtype import values_by_dtype
from outlier_moe.sources.hub_answers import NetworkError, cause, explain_refusals, retry_after_s, token
from outlier_moe.sources.safetensors_header import read_header

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
WAITS_S = (1.0, 4.0, 16.0)
"""How long to wait before each new attempt at what failed for a passing reason."""
LONGEST_WAIT_S = 60.0
"""How long to wait at most because the hub asks for it."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    name: str
    """Its path in the repository."""
    size: int | None
    """Bytes, where the hub says so."""
    sha256: str | None
    """Its SHA-256, which the hub gives for large files."""


@dataclass(frozen=True)
class HubSnapshot:
    """A repository at one commit."""

    repo: str
    """The repository, as owner/name."""
    commit: str
    """The commit."""
    license: str | None
    """The licence in its card."""
    files: tuple[HubFile, ...]
    """All its files; for a snapshot in the cache, those that it holds."""
    folder: Path | None = None
    """Folder of a snapshot in the cache."""


def resolve_model(repo: str, revision: str, *, key: str) -> HubSnapshot:
    """The commit that a revision of a model stands for now, and its files.

    Offline, the one that `hf download` left in the hub's cache.

    Args:
        repo: The repository, as owner/name.
        revision: A branch, a tag or a commit.
        key: The registry's key of this source, for messages.

    Raises:
        StudyError: If the hub has no such repository or revision, or cannot be asked.
    """
    if constants.HF_HUB_OFFLINE:
        cached = cached_model(repo, revision)
        if cached is not None:
            return cached
    with explain_refusals(repo, revision, key=key):
        info = retry(lambda: HfApi(token=token()).model_info(repo, revision=revision, files_metadata=True))
    files = [
        HubFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    ]
    license = info.card_data.get("license") if info.card_data else None
    return HubSnapshot(repo, str(info.sha), license if isinstance(license, str) else None, tuple(files))


def cached_model(repo: str, revision: str) -> HubSnapshot | None:
    """A model's files in the hub's cache at a revision; None if its configuration is not among them."""
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = [
        HubFile(path.name, path.stat().st_size, blob_sha256(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    return HubSnapshot(repo, folder.name, None, tuple(files), folder)


def values_on_hub(snapshot: HubSnapshot, *, key: str) -> dict[str, int] | None:
    """How many values of each dtype a model's safetensors have; only headers are read.

    Args:
        snapshot: The repository.
        key: The registry's key of this source, for messages.

    Returns:
        None if they cannot be told: offline, what the cache does not hold.

    Raises:
        StudyError: If the hub refuses.
    """
    if snapshot.folder is not None:
        headers = [read_header(path) for path in sorted(snapshot.folder.glob("*.safetensors"))]
        return values_by_dtype(headers) or None
    ask = HfApi(token=token()).get_safetensors_metadata
    with explain_refusals(snapshot.repo, snapshot.commit, key=key):
        try:
            found = retry(lambda: ask(snapshot.repo, revision=snapshot.commit))
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            log.warning("The hub does not tell what %s is stored in (%s).", snapshot.repo, type(error).__name__)
            return None
    return {str(dtype): n for dtype, n in found.parameter_count.items()}


def download(repo: str, commit: str, names: Collection[str], *, key: str) -> Path:
    """The folder of the hub's cache with the named files of a commit, downloaded if needed.

    Raises:
        StudyError: If the hub refuses them or cannot be reached.
    """
    with explain_refusals(repo, commit, key=key):
        folder = retry(lambda: snapshot_download(repo, revision=commit, allow_patterns=list(names), token=token()))
    absent = [name for name in names if not (Path(folder) / name).exists()]
    if absent:
        raise StudyError(
            "Files of a model are not in the hub's cache, and offline they cannot be downloaded.",
            file=Path(folder),
            key=key,
            expected=", ".join(absent[:4]),
            remedy=f"Unset HF_HUB_OFFLINE, or run `hf download {repo} --revision {commit}` where there is a network.",
        )
    return Path(folder)


def retry(ask: Callable[[], Answer]) -> Answer:
    """The answer of the hub, asked again after a growing wait if it fails for a passing reason."""
    for wait_s in WAITS_S:
        try:
            return ask()
        except Exception as error:
            if not _is_transient(error):
                raise
            wait_s = max(wait_s, min(retry_after_s(error) or 0, LONGEST_WAIT_S))
            log.warning("The hub did not answer as it should (%s); trying again in %g s.", cause(error), wait_s)
            time.sleep(wait_s)
    return ask()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, NetworkError) or (error.__cause__ is not None and _is_transient(error.__cause__))
