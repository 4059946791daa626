"""Fetching a text: its documents in one Parquet file, cut to a number of characters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from dataframely.exc import SchemaError, ValidationError

from outlier_moe.config.registry import CorpusEntry
from outlier_moe.errors import StudyError
from outlier_moe.sources.documents import read_documents
from outlier_moe.tables import schemas
from outlier_moe.tables.files import read_table, table_facts, write_table
from outlier_moe.tables.whole_outputs import whole_file

_FETCH_AGAIN = "Remove the file and fetch the text again."


class Corpus(NamedTuple):
    """A fetched text."""

    documents: list[str]
    """Its documents."""
    metadata: dict[str, Any]
    """Where they came from; `corpus_sha256` names them, `is_cut` says whether the source had more."""


def fetch_corpus(entry: CorpusEntry, path: Path) -> None:
    """Write a text's documents to a Parquet file, which appears when it is whole.

    Documents without a visible character are left out, and the last is cut where `max_characters` is reached.

    Args:
        entry: The text.
        path: The file to write.

    Raises:
        StudyError: If the source refuses the text or lacks it, or there is nothing in it.
    """
    text = read_text(entry)
    rows = pl.DataFrame({"document": range(len(text.documents)), "text": text.documents})
    with whole_file(path) as partial:
        write_table(schemas.Document.validate(rows, cast=True), partial, text.metadata)


def read_text(entry: CorpusEntry) -> Corpus:
    """A text from its source, as `fetch_corpus` writes it.

    Raises:
        StudyError: If the source refuses the text or lacks it, or there is nothing in it.
    """
    key = f"corpora.{entry.id}.source"
    reader = read_documents(entry.source, key=key)
    documents = list(_cut(reader.documents, entry.max_characters))
    if not documents:
        raise StudyError("A corpus has no text.", key=key, expected="a document with a visible character", got="none")
    n_characters = sum(map(len, documents))
    metadata = {
        "corpus": entry.id,
        "kind": entry.source.kind,
        **asdict(entry.source),
        **reader.provenance(),
        "max_characters": entry.max_characters,
        "is_cut": n_characters == entry.max_characters,
        "n_documents": len(documents),
        "n_characters": n_characters,
        "corpus_sha256": documents_sha256(documents, key=key),
    }
    return Corpus(documents, metadata)


def _cut(documents: Iterable[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for document in documents:
        if not document.strip():
            continue
        # Cutting may leave white space alone, which is no document either.
        if not document[:left].strip():
            return
        yield document[:left]
        left -= len(document)
        if left <= 0:
            return


def documents_sha256(documents: Iterable[str], *, key: str | None = None) -> str:
    """The SHA-256 of documents: of each one's number of UTF-8 bytes (8 bytes, little-endian) and those bytes.

    Raises:
        StudyError: If a document holds half of a surrogate pair, which no UTF-8 file can.
    """
    digest = hashlib.sha256()
    for number, document in enumerate(documents):
        try:
            encoded = document.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StudyError(
                "A document is not valid Unicode.",
                key=key,
                expected="text that can be written as UTF-8",
                got=f"half of a surrogate pair at character {error.start} of document {number}",
            ) from error
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def read_corpus(path: Path) -> Corpus:
    """A fetched text.

    Raises:
        StudyError: If the file is missing, damaged, or was changed since it was fetched.
    """
    try:
        documents = schemas.Document.validate(read_table(path, remedy=_FETCH_AGAIN))["text"].to_list()
        metadata = table_facts(path)
        is_whole = documents_sha256(documents) == metadata["corpus_sha256"]
    except (OSError, pl.exceptions.PolarsError, ValidationError, SchemaError, KeyError, ValueError) as error:
        raise _broken(path, got=f"{type(error).__name__}: {error}") from error
    if not is_whole:
        raise _broken(path, got="documents of another SHA-256 than the file says")
    return Corpus(documents, metadata)


def _broken(path: Path, *, got: str) -> StudyError:
    return StudyError(
        "A fetched text cannot be read.",
        file=path,
        expected="the Parquet file that fetch_corpus writes",
        got=got,
        remedy=_FETCH_AGAIN,
    )
