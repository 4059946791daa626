"""A data set of the Hugging Face hub, streamed from its start."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from outlier_moe.errors import StudyError
from outlier_moe.registry import HubDatasetSource
from outlier_moe.sources.documents import Reader, no_column
from outlier_moe.sources.hub import patiently
from outlier_moe.sources.hub_answers import explained, token


def read_hub_dataset(source: HubDatasetSource, *, key: str) -> Reader:
    """The rows of a data set, of the commit that its revision stands for now.

    Raises:
        StudyError: If the hub lacks or refuses it, or it has no such configuration, split or column.
    """
    with explained(f"datasets/{source.repo}", source.revision, key=key):
        api = HfApi(token=token())
        info = patiently(lambda: api.dataset_info(source.repo, revision=source.revision))
    return Reader(_rows(source, str(info.sha), key=key), lambda: {"commit": info.sha})


def _rows(source: HubDatasetSource, commit: str, *, key: str) -> Iterator[str]:
    with explained(f"datasets/{source.repo}", commit, key=key):
        try:
            rows = patiently(lambda: _opened(source, commit))
            for row in rows:
                text = row.get(source.column, row)
                if text is not None and not isinstance(text, str):
                    got = type(text).__name__ if source.column in row else None
                    raise no_column(source.repo, source.column, list(row), got=got)
                yield text or ""
        except HfHubHTTPError:
            raise
        except (DatasetsError, ValueError) as error:
            raise StudyError(
                "A data set of the hub cannot be read as registered.",
                key=key,
                expected=f"{source.repo}, configuration {source.name or 'default'}, split {source.split}",
                got=" ".join(str(error).split())[:400],
                remedy="Set `name` and `split` to what the data set has.",
            ) from error


def _opened(source: HubDatasetSource, commit: str) -> IterableDataset:
    return load_dataset(
        source.repo, name=source.name, split=source.split, streaming=True, revision=commit, token=token()
    )
