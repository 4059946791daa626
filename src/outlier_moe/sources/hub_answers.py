"""The hub's refusals, each turned into an error that names the cause and the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import NamedTuple, cast

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from outlier_moe.errors import StudyError

# httpx's or, from huggingface-hub 2 on, httpx2's: the base of whatever the installed hub raises when a network fails.
NetworkError = cast("type[Exception]", next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"))


# Where the client of the hub looks for certificates.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class HubAwayError(StudyError):
    """The hub does not answer, so further requests are useless."""


def token() -> str | bool:
    """HF_TOKEN of the environment, else what `hf auth login` saved; False, which is no token, if there is neither.

    Raises:
        StudyError: If the one that there is can be no token.
    """
    given = os.environ.get("HF_TOKEN", "").strip()
    try:
        found = given or get_token() or ""
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            "The saved login of the hub cannot be read.",
            file=constants.HF_TOKEN_PATH,
            expected="a file with a token",
            got=type(error).__name__,
            remedy="Log in anew (`hf auth login`); HF_HOME has to be a folder, and HF_TOKEN_PATH a file in one.",
        ) from error
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise StudyError(
            "What should be a token of the hub is none.",
            file=None if given else constants.HF_TOKEN_PATH,
            key="HF_TOKEN" if given else None,
            expected="letters, digits and _ alone, as in hf_...",
            got=f"{len(found)} characters, some of them others",
            remedy=f"Copy it anew from {constants.ENDPOINT}/settings/tokens, or make it empty to do without one.",
        )
    return found or False


def _authorisation() -> str:
    """Where the token in requests comes from."""
    if os.environ.get("HF_TOKEN", "").strip():
        return "HF_TOKEN of the environment"
    if token():
        return f"the login saved in {constants.HF_TOKEN_PATH}"
    return "no HF_TOKEN in the environment and no saved login"


def _root(error: BaseException) -> BaseException:
    """The root cause of an error: the hub's answer, if there was one."""
    root = error
    while root.__cause__ is not None and not isinstance(root, HfHubHTTPError | OfflineModeIsEnabled):
        root = root.__cause__
    return root


def cause(error: BaseException) -> str:
    """The status of an answer, or the kind of a failure, and nothing secret."""
    root = _root(error)
    return f"status {root.response.status_code}" if isinstance(root, HfHubHTTPError) else type(root).__name__


def retry_after_s(error: BaseException) -> float | None:
    """How long the hub asks to wait, if it refused a request because there were too many."""
    root = _root(error)
    if not isinstance(root, HfHubHTTPError):
        return None
    said = root.response.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else None


@contextmanager
def explain_refusals(repo: str, revision: str, *, key: str) -> Iterator[None]:
    """Turn what the hub's client raises in the block into an error that says what to do."""
    try:
        yield
    # The last ones are what the client makes of an answer that is JSON and none of the hub's, and of an odd proxy.
    except (OSError, EntryNotFoundError, NetworkError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _explanation(error, repo, revision, key=key) from error


def _explanation(error: Exception, repo: str, revision: str, *, key: str) -> StudyError:
    root = _root(error)
    if isinstance(root, RevisionNotFoundError):
        problem = "The hub has no such revision of this repository."
        remedy = f"Name one that stands at {constants.ENDPOINT}/{repo}/tree/main."
        return StudyError(problem, key=f"{key}.revision", got=revision, remedy=remedy)
    refusal = _refusal(root, repo) or _own_fault(root, repo)
    if refusal is not None:
        got = f"{repo} at {revision}, with {_authorisation()}"
        return StudyError(refusal.problem, key=f"{key}.repo", got=got, remedy=refusal.remedy)
    away = _away(error, root)
    return HubAwayError(away.problem, key=f"{key}.repo", got=f"{repo} at {revision}", remedy=away.remedy)


class _Told(NamedTuple):
    """A problem and its remedy."""

    problem: str
    remedy: str


def _refusal(root: BaseException, repo: str) -> _Told | None:
    """The meaning of a refusal; None if the hub refused nothing."""
    what = "data set" if repo.startswith("datasets/") else "model"
    page = f"{constants.ENDPOINT}/{repo}"
    has_token = bool(token())
    log_in = "log in with `hf auth login`, or put a token into HF_TOKEN (jobs on other machines get HF_TOKEN alone)"
    match root:
        case GatedRepoError() if has_token:
            remedy = f"Accept its licence at {page} with the account of this token, or use another account's token."
            return _Told(f"A {what} is gated, and the hub does not open it to this account.", remedy)
        case GatedRepoError():
            remedy = f"Accept its licence at {page}; then {log_in}."
            return _Told(f"A {what} is gated, and the hub does not open it to you.", remedy)
        case DisabledRepoError():
            return _Told(f"The hub has switched this {what} off.", f"Look at {page}, and take another source.")
        case RepositoryNotFoundError() if has_token:
            remedy = "Check owner and name; a private one opens to a token of an account that may read it."
            return _Told("The hub has no such repository, or it is private.", remedy)
        case RepositoryNotFoundError():
            remedy = f"Check owner and name; for a private one {log_in}."
            return _Told("The hub has no such repository, or it is private.", remedy)
        case EntryNotFoundError() if isinstance(root, HfHubHTTPError):
            return _Told("The hub lacks a file of this repository.", "Take another revision.")
        case HfHubHTTPError() if root.response.status_code == 401 and has_token:
            remedy = f"It is wrong or expired: make a new one at {constants.ENDPOINT}/settings/tokens, and {log_in}."
            return _Told("The hub does not know the token.", remedy)
        case HfHubHTTPError() if root.response.status_code in (401, 403):
            remedy = "Give the token the right to read this repository, or use one of an account that has it."
            return _Told("The hub refused the request.", remedy if has_token else f"{log_in[:1].upper()}{log_in[1:]}.")
    return None


def _own_fault(root: BaseException, repo: str) -> _Told | None:
    """The problem on this machine; None if the cause is elsewhere."""
    match root:
        case OfflineModeIsEnabled():
            download_first = f", or run `hf download {repo}` where there is a network"
            # Data sets are streamed, and never in the cache.
            remedy = f"Unset HF_HUB_OFFLINE{'' if repo.startswith('datasets/') else download_first}."
            return _Told(
                "The hub is switched off (HF_HUB_OFFLINE), and its cache does not hold what is needed.", remedy
            )
        case HFValidationError():
            return _Told("That is no name of a repository.", "Write owner/name.")
        case OSError() if root.errno in (errno.ENOSPC, errno.EDQUOT):
            return _Told("The disk is full.", "Make room in the hub's cache (HF_HOME), or move it; then run again.")
        case OSError() if root.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "Set HF_HOME to a folder that you may write to."
            return _Told(f"The hub's cache cannot be written ({root.filename or constants.HF_HUB_CACHE}).", remedy)
        case FileNotFoundError() if lacking := [name for name in _CERTIFICATES if _is_lacking(os.environ.get(name))]:
            remedy = f"Set {lacking[0]} to a file that is there, or unset it."
            return _Told(f"The certificates are not where {lacking[0]} says.", remedy)
        case _ if isinstance(root, ValueError | ImportError) and "proxy" in str(root).lower():
            remedy = "Write http://HOST:PORT into HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or unset them; for SOCKS also: "
            return _Told("The proxy of the environment cannot be used.", f"{remedy}pip install 'httpx[socks]'.")
        case _ if type(root).__name__ in ("UnsupportedProtocol", "InvalidURL"):
            remedy = "Set HF_ENDPOINT to a whole address, such as https://huggingface.co, or unset it."
            return _Told("The address of the hub is none.", remedy)
        case FileMetadataError() | JSONDecodeError() | KeyError() | TypeError():
            remedy = "Look to HF_ENDPOINT, and to a proxy or a log-in page of the network that answers in its place."
            return _Told(f"What answers at {constants.ENDPOINT} does not speak as the hub does.", remedy)
    return None


def _is_lacking(path: str | None) -> bool:
    return bool(path) and not os.path.exists(str(path))


def _away(error: BaseException, root: BaseException) -> _Told:
    """Why the hub gives the files to nobody, or not now."""
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
    if status == 429:
        wait_s = retry_after_s(error)
        when = "in some minutes" if wait_s is None else f"in {wait_s:g} s, as the hub asks"
        remedy = f"Run again {when}: what was downloaded is kept."
        if not token():
            remedy += " An account's requests are allowed more: log in with `hf auth login`, or set HF_TOKEN."
        return _Told("The hub allows no more requests for now (status 429).", remedy)
    if status is not None and status >= 500:
        remedy = "The fault is the hub's (https://status.huggingface.co): run again later, what was downloaded is kept."
        return _Told(f"The hub has a fault of its own (status {status}).", remedy)
    if status is not None:
        remedy = "Look to HF_ENDPOINT and the proxy, and run again."
        return _Told(f"The hub did not answer as it should (status {status}).", remedy)
    remedy = "Look to the network and the proxy and run again; what was downloaded is kept."
    return _Told(f"The hub could not be reached ({cause(error)}).", remedy)
