"""A data set of the Hugging Face hub, streamed from its start."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import IterableDataset, load_dataset
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from outlier_moe.config.registry import HubDatasetSource
from outlier_moe.errors import StudyError
from outlier_moe.sources.document_files import no_column
from outlier_moe.sources.documents import Reader
from outlier_moe.sources.hub import retry
from outlier_moe.sources.hub_answers import NetworkError, explain_refusals, token


def read_hub_dataset(source: HubDatasetSource, *, key: str) -> Reader:
    """The rows of a data set, of the commit that its revision stands for now.

    Raises:
        StudyError: If the hub lacks or refuses it, or it has no such configuration, split or column.
    """
    with explain_refusals(f"datasets/{source.repo}", source.revision, key=key):
        api = HfApi(token=token())
        info = retry(lambda: api.dataset_info(source.repo, revision=source.revision))
    return Reader(_rows(source, str(info.sha), key=key), lambda: {"commit": info.sha})


def _rows(source: HubDatasetSource, commit: str, *, key: str) -> Iterator[str]:
    with explain_refusals(f"datasets/{source.repo}", commit, key=key):
        try:
            rows = retry(lambda: _opened(source, commit))
            for row in rows:
                text = row.get(source.column, row)
                if text is not None and not isinstance(text, str):
                    got = type(text).__name__ if source.column in row else None
                    raise no_column(source.repo, source.column, list(row), got=got)
                yield text or ""
        except (StudyError, GeneratorExit):
            raise
        # The library, and those behind it that open and parse files, raise whatever they please.
        except Exception as error:
            if _is_the_hubs(error):
                raise
            raise _unreadable(error, source, key=key) from error


def _is_the_hubs(error: BaseException) -> bool:
    """Whether an error comes from the hub and not from the data set."""
    root = error
    while root.__cause__ is not None and not isinstance(root, HfHubHTTPError | OfflineModeIsEnabled):
        root = root.__cause__
    is_network = isinstance(root, NetworkError | ConnectionError | TimeoutError)
    return is_network or isinstance(root, HfHubHTTPError | OfflineModeIsEnabled)


# What the message of an error has, in lower case, and what that means; the first that fits.
_CAUSES = (
    (
        ("gated dataset",),
        "A data set is gated, and the hub does not open it to you.",
        "Accept its licence at {page}; then log in with `hf auth login`, or put a token of that account into HF_TOKEN.",
    ),
    (
        ("scripts are no longer supported", "trust_remote_code"),
        "A data set of the hub is a Python script, which is never run.",
        "Take a revision with Parquet files (the hub converts most: revision: refs/convert/parquet), or download the "
        "files and register them as a source of kind `files`.",
    ),
    (
        ("zstd", "zstandard"),
        "A data set of the hub is compressed in a way that wants another package.",
        "Install zstandard (pip install zstandard), or take revision: refs/convert/parquet.",
    ),
    (
        ("available splits", "bad split", "builderconfig", "config name is missing", "unknown split"),
        "A data set of the hub cannot be read as registered.",
        "Set `name` and `split` to what the data set has.",
    ),
    (
        ("column names", "cast", "schema", "changed from", "couldn't be unified"),
        "The files of a data set have other columns, or columns of other types, than the first of them.",
        "Name a configuration whose files are alike, or download those that are and register them as a source of kind "
        "`files`.",
    ),
    (
        ("doesn't contain any data files", "no (supported) data files", "no data files", "couldn't find any data"),
        "A data set of the hub has no files that can be read.",
        "Look at {page}/tree/{revision}: name a configuration or revision with Parquet, JSON lines or text.",
    ),
)


def _unreadable(error: Exception, source: HubDatasetSource, *, key: str) -> StudyError:
    """The problem with a data set, from the libraries' errors."""
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    said = " ".join(" ".join(map(str, chain)).lower().split())
    page = f"{constants.ENDPOINT}/datasets/{source.repo}"
    problem = "A file of a data set is damaged, or cut off."
    remedy = f"Look at it at {page}; take another revision, or name another configuration or split."
    for words, meaning, way_out in _CAUSES:
        if any(word in said for word in words):
            problem, remedy = meaning, way_out.format(page=page, revision=source.revision)
            break
    return StudyError(
        problem,
        key=key,
        expected=f"{source.repo}, configuration {source.name or 'default'}, split {source.split}",
        got=f"{type(chain[-1]).__name__}: {' '.join(str(chain[-1] or error).split())[:400]}",
        remedy=remedy,
    )


def _opened(source: HubDatasetSource, commit: str) -> IterableDataset:
    return load_dataset(
        source.repo, name=source.name, split=source.split, streaming=True, revision=commit, token=token()
    )
