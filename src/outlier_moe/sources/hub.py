"""The Hugging Face hub: a repository's commit and files, and what its refusals mean."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_dtype import values_by_dtype
from outlier_moe.sources.safetensors_header import read_header

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# httpx's or, from huggingface-hub 2 on, httpx2's: the base of whatever the installed hub raises when a network fails.
_NetworkError = cast("type[Exception]", next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"))

_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
WAITS_S = (1.0, 4.0, 16.0)
"""How long to wait before each new attempt at what failed for a passing reason."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    name: str
    """Its path in the repository."""
    size: int | None
    """Bytes, where the hub says so."""
    sha256: str | None
    """Its SHA-256, which the hub says of large files."""


@dataclass(frozen=True)
class HubSnapshot:
    """A repository at one commit."""

    repo: str
    """The repository, as owner/name."""
    commit: str
    """The commit."""
    license: str | None
    """What its card says of the licence."""
    files: tuple[HubFile, ...]
    """All its files; of one from the cache, those that it holds."""
    folder: Path | None = None
    """Where they are, of one from the cache."""


class HubAwayError(StudyError):
    """The hub does not answer: whatever else is asked of it, it will not."""


def token() -> str | bool:
    """HF_TOKEN of the environment; False, which keeps the hub from taking one that lies elsewhere, if there is none."""
    return os.environ.get("HF_TOKEN", "").strip() or False


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
    with explained(repo, revision, key=key):
        info = patiently(lambda: HfApi(token=token()).model_info(repo, revision=revision, files_metadata=True))
    files = [
        HubFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    ]
    license = info.card_data.get("license") if info.card_data else None
    return HubSnapshot(repo, str(info.sha), license if isinstance(license, str) else None, tuple(files))


def cached_model(repo: str, revision: str) -> HubSnapshot | None:
    """What the hub's cache holds of a model at a revision; None if that is not even its configuration."""
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = [HubFile(path.name, path.stat().st_size, None) for path in sorted(folder.iterdir()) if path.is_file()]
    return HubSnapshot(repo, folder.name, None, tuple(files), folder)


def values_on_hub(snapshot: HubSnapshot, *, key: str) -> dict[str, int] | None:
    """How many values a model's safetensors have of each dtype, of whose files only the headers are read.

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
    with explained(snapshot.repo, snapshot.commit, key=key):
        try:
            found = patiently(lambda: ask(snapshot.repo, revision=snapshot.commit))
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            log.warning("The hub does not tell what %s is stored in (%s).", snapshot.repo, type(error).__name__)
            return None
    return {str(dtype): n for dtype, n in found.parameter_count.items()}


def download(repo: str, commit: str, names: Collection[str], *, key: str) -> Path:
    """The folder of the hub's cache that holds the named files of a commit, downloaded where they are not there yet.

    Raises:
        StudyError: If the hub refuses them or cannot be reached.
    """
    with explained(repo, commit, key=key):
        folder = patiently(lambda: snapshot_download(repo, revision=commit, allow_patterns=list(names), token=token()))
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


def patiently(ask: Callable[[], Answer]) -> Answer:
    """The answer of the hub; asked again, after a growing wait, while it fails for a passing reason."""
    for wait_s in WAITS_S:
        try:
            return ask()
        except Exception as error:
            if not _is_transient(error):
                raise
            log.warning("The hub did not answer as it should (%s); trying again in %g s.", _cause(error), wait_s)
            time.sleep(wait_s)
    return ask()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, _NetworkError) or (error.__cause__ is not None and _is_transient(error.__cause__))


def _cause(error: BaseException) -> str:
    """What lies at the root of an error: the status of an answer, or the kind of a failure, and nothing secret."""
    root: BaseException = error
    while root.__cause__ is not None and not isinstance(root, HfHubHTTPError):
        root = root.__cause__
    if isinstance(root, HfHubHTTPError):
        return f"status {root.response.status_code}"
    return type(root).__name__


@contextmanager
def explained(repo: str, revision: str, *, key: str) -> Iterator[None]:
    """Turn what the hub's client raises in the block into an error that says what to do."""
    try:
        yield
    except (OSError, HFValidationError, EntryNotFoundError, _NetworkError) as error:
        raise _explanation(error, repo, revision, key=key) from error


def _explanation(error: Exception, repo: str, revision: str, *, key: str) -> StudyError:
    page = f"{constants.ENDPOINT}/{repo}"
    authorised = "HF_TOKEN of the environment" if token() else "no HF_TOKEN in the environment"
    root = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError | OfflineModeIsEnabled) else error
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
    match root:
        case GatedRepoError():
            problem = "A model is gated, and the hub does not open it to you."
            remedy = f"Accept its licence at {page}, and put a token of that account into HF_TOKEN."
        case RevisionNotFoundError():
            return StudyError("The hub has no such revision of this repository.", key=f"{key}.revision", got=revision)
        case RepositoryNotFoundError():
            problem = "The hub has no such repository, or it is private."
            remedy = "Check owner and name; a private one wants HF_TOKEN."
        case OfflineModeIsEnabled():
            problem = "The hub is switched off (HF_HUB_OFFLINE), and its cache does not hold what is needed."
            download_first = f", or run `hf download {repo}` where there is a network"
            # Data sets are streamed, and never in the cache.
            remedy = f"Unset HF_HUB_OFFLINE{'' if repo.startswith('datasets/') else download_first}."
        case HFValidationError():
            problem, remedy = "That is no name of a repository.", "Write owner/name."
        case EntryNotFoundError() if isinstance(root, HfHubHTTPError):
            problem, remedy = "The hub lacks a file of this repository.", "Take another revision."
        case OSError() if root.errno == errno.ENOSPC:
            problem, remedy = "The disk is full.", "Make room in the hub's cache (HF_HOME), or move it; then run again."
        case _ if status in (401, 403):
            problem = "The hub refused the request."
            remedy = "HF_TOKEN is wrong, expired, or may not read this repository: make a new one."
        case _:
            problem = f"The hub could not be reached ({_cause(error)})."
            remedy = "Look to the network and the proxy and run again; what was downloaded is kept."
            return HubAwayError(problem, key=f"{key}.repo", got=f"{repo} at {revision}", remedy=remedy)
    got = f"{repo} at {revision}, with {authorised}"
    return StudyError(problem, key=f"{key}.repo", got=got, remedy=remedy)
