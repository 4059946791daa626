"""The documents of local files, one after the other: plain text, JSON lines and Parquet, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_moe.errors import StudyError, nearest

KINDS = ".txt, .jsonl (either also with .gz, .bz2, .xz or .zst) or .parquet"
# By what a text begins with; UTF-32's mark begins as UTF-16's does.
_MARKED = {
    b"\xff\xfe\0\0": ("UTF-32", "little-endian"),
    b"\0\0\xfe\xff": ("UTF-32", "big-endian"),
    b"\xff\xfe": ("UTF-16", "little-endian"),
    b"\xfe\xff": ("UTF-16", "big-endian"),
}


def _opened_zst(path: Path, mode: str) -> BufferedIOBase:
    # Python's own library has no zstd before 3.14.
    del mode
    return BufferedReader(cast(Any, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))


OPENERS: dict[str, Callable[[Path, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _opened_zst,
}


def rows_of_files(paths: Iterable[Path], column: str) -> Iterator[str]:
    """The documents of files, in their order.

    Raises:
        StudyError: While they are read: if a file is of an unknown kind, damaged or no text, or lacks the column.
    """
    for path in paths:
        with _damage_told(path):
            suffix = path.suffix.lower()
            name = path.stem.lower() if suffix in OPENERS else path.name.lower()
            if suffix == ".parquet":
                yield from _parquet_column(path, column)
                continue
            if not name.endswith((".txt", ".jsonl")):
                raise _unknown_kind(path)
            with OPENERS.get(suffix, open)(path, "rb") as file:
                if name.endswith(".txt"):
                    yield _decoded(file.read(), path)
                else:
                    yield from _json_column(file, path, column)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        is_mine = isinstance(error, PermissionError)
        raise StudyError(
            "A file of a corpus cannot be read.",
            file=path,
            expected="a whole file of the kind that its name says",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}" if path.stat().st_size else "no bytes",
            remedy="Give yourself the right to read it."
            if is_mine
            else "Copy or download the file again, or leave it out of the source's paths.",
        ) from error


def _unknown_kind(path: Path) -> StudyError:
    remedies = {
        ".json": "Write one object a line, for instance with: jq -c '.[]'",
        ".csv": "Convert it to Parquet, for instance with polars: pl.read_csv(...).write_parquet(...)",
    }
    return StudyError(
        "A file of a corpus is of an unknown kind.",
        file=path,
        expected=KINDS,
        got=path.suffix or "no suffix",
        remedy=remedies.get(path.suffix.lower(), "Convert the file, rename it, or leave it out of the source's paths."),
    )


def _decoded(encoded: bytes, path: Path, *, place: str = "") -> str:
    marked = next((kind for mark, kind in _MARKED.items() if encoded.startswith(mark)), None)
    try:
        if marked is not None:
            raise UnicodeDecodeError("utf-8", encoded, 0, 1, marked[0])
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(
            "A file of a corpus is not UTF-8.",
            file=path,
            key=place or None,
            expected="UTF-8",
            got=f"{marked[0]} ({marked[1]})"
            if marked
            else f"byte 0x{encoded[error.start]:02x} at offset {error.start}",
            remedy=f"Convert it: iconv -f {marked[0] if marked else 'ITS-ENCODING'} -t UTF-8 {path.name}",
        ) from error
    if "\0" in text:
        raise StudyError(
            "A file of a corpus is no plain text: it has NUL characters.",
            file=path,
            key=place or None,
            expected="text in UTF-8",
            got=f"a NUL at character {text.index(chr(0))}",
            remedy="Convert it if it is UTF-16 without a byte-order mark; leave it out if it is no text.",
        )
    return text


def _json_column(file: BufferedIOBase, path: Path, column: str) -> Iterator[str]:
    for place, row in json_rows(file, path, column=column):
        text = row.get(column, row)
        if text is not None and not isinstance(text, str):
            got = None if column not in row else type(text).__name__
            if isinstance(text, dict) and got:
                got = f"an object with {', '.join(list(text)[:6])}"
            raise no_column(path, column, list(row), got=got, place=place)
        yield text or ""


def json_rows(file: BufferedIOBase, path: Path, *, column: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, each with its place for messages; empty lines are left out."""

    def told_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs) and [name for name, _ in pairs].count(column or "") > 1:
            raise ValueError(f"the key '{column}' is there more than once")
        return row

    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        text = _decoded(line, path, place=place)
        try:
            row = json.loads(text, object_pairs_hook=told_once)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise StudyError(
                "A line of a corpus is not a JSON object.",
                file=path,
                key=place,
                expected="one object, whole, on each line, without a key twice",
                got="nested too deeply" if isinstance(error, RecursionError) else str(error),
                remedy="Mend or remove the line.",
            ) from error
        yield place, row


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise no_column(path, column, names)
        if names.count(column) > 1:
            got = f"{names.count(column)} columns of that name"
            raise no_column(path, column, names, got=got)
        kind = file.schema_arrow.field(column).type
        kind_of_values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not _is_text(kind_of_values):
            raise no_column(path, column, names, got=str(kind))
        first = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield from _texts(batch.column(0), path, first)
            first += len(batch)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _texts(values: pa.Array, path: Path, first: int) -> Iterator[str]:
    for row, value in enumerate(values, start=first):
        try:
            yield value.as_py() or ""
        except UnicodeDecodeError as error:
            raise StudyError(
                "A file of a corpus is not UTF-8.",
                file=path,
                key=f"row {row}",
                expected="UTF-8, as Parquet's text is",
                got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
                remedy="Write the file again with text that is decoded first.",
            ) from error


def no_column(
    path: Path | str, column: str, names: list[str], *, got: str | None = None, place: str | None = None
) -> StudyError:
    """The error for rows without the column of text (or, with `got`, for a column of another type)."""
    others = [name for name in names if name != column]
    remedy = f"Set the source's `column`: {nearest(column, names)}"
    if got is not None:
        remedy = "Set the source's `column` to one that holds text"
        remedy += f"; the others are {', '.join(others[:8])}." if others else ", or make one."
    return StudyError(
        "A corpus lacks its column of text." if got is None else "A corpus' column is not text.",
        file=path,
        key=place,
        expected=f"text in '{column}'",
        got=got or f"the columns {', '.join(names)}",
        remedy=remedy,
    )
