"""How tables lie in files: with what they were made by, and with a checksum that every reader holds them against.

A file's metadata has two keys. `outlier_moe` is JSON: what the table was made by (thresholds, presets, the ladder).
`outlier_moe.checksum` is the CRC-32 of all bytes of the file, those of the checksum itself taken as zeros. A CRC-32
finds every single flipped bit and every run of up to 32; of other damage it misses one in four thousand million.

Files of earlier versions have neither. They are read all the same, and damage then shows only if it breaks the format.
"""

from __future__ import annotations

import json
import logging
import mmap
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from outlier_moe.errors import StudyError

log = logging.getLogger(__name__)

FACTS = "outlier_moe"
"""The key of a file's metadata that says what the table was made by."""
CHECKSUM = "outlier_moe.checksum"
"""The key that has the checksum."""
_MARK = b"outlier_moe.crc32="
# What the facts of a file with a checksum say; those of an earlier version do not.
_IS_SEALED = b'"checksum": "crc32"'
_ZEROS = b"00000000"
_MARKED = re.compile(re.escape(_MARK) + b"([0-9a-f]{8})")
_PIECE = 2**22
# The other indices that Arrow has, for those that pandas cannot take.
_SIGNED = {pa.uint8(): pa.int8(), pa.uint16(): pa.int16(), pa.uint32(): pa.int32()}


def signed_indices(schema: pa.Schema) -> pa.Schema:
    """A schema whose columns of names have signed numbers for them: pandas refuses the unsigned ones of Polars."""
    for at, field in enumerate(schema):
        if pa.types.is_dictionary(field.type) and field.type.index_type in _SIGNED:
            kind = pa.dictionary(_SIGNED[field.type.index_type], field.type.value_type, field.type.ordered)
            schema = schema.set(at, field.with_type(kind))
    return schema


def with_facts(schema: pa.Schema, facts: Mapping[str, Any]) -> pa.Schema:
    """A schema of an Arrow file that says what its table was made by; call `seal` when the file is written."""
    return schema.with_metadata(_metadata(facts))


def _metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    return {FACTS: json.dumps({**facts, "checksum": "crc32"}), CHECKSUM: (_MARK + _ZEROS).decode()}


def write_table(
    table: pl.DataFrame,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    row_group_size: int | None = None,
    compression: Literal["zstd", "lz4"] = "zstd",
) -> None:
    """Write a Parquet file with what the table was made by, and its checksum.

    Args:
        table: The table.
        path: Where to.
        facts: What it was made by, as JSON can say it.
        row_group_size: Rows that are read together.
        compression: lz4 for what is read more often than it is kept.
    """
    from pyarrow import parquet

    arrow = table.to_arrow()
    arrow = arrow.cast(signed_indices(arrow.schema))
    # Figures and bytes hardly repeat: a dictionary of them makes reading take twice as long.
    repeated: Any = [field.name for field in arrow.schema if not _is_seldom_repeated(field.type)]
    with parquet.ParquetWriter(path, arrow.schema, compression=compression, use_dictionary=repeated) as writer:
        writer.write_table(arrow, row_group_size=row_group_size)
        writer.add_key_value_metadata(_metadata(facts or {}))
    seal(Path(path))


def _is_seldom_repeated(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def seal(path: Path) -> None:
    """Put its checksum into a file that was written with zeros for it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        places = [match.start(1) for match in _MARKED.finditer(content)]
        digest = f"{_crc(content, places):08x}".encode()
        for place in places:
            content[place : place + len(digest)] = digest


def _crc(content: mmap.mmap, places: list[int]) -> int:
    """The CRC-32 of a file, the checksums at some places taken as zeros."""
    crc, start = 0, 0
    for place in [*places, len(content)]:
        for at in range(start, place, _PIECE):
            crc = zlib.crc32(content[at : min(at + _PIECE, place)], crc)
        if place < len(content):
            crc = zlib.crc32(_ZEROS, crc)
        start = place + len(_ZEROS)
    return crc


def check_table(path: Path, *, remedy: str) -> None:
    """Hold a file against its checksum, once in a process unless the file changes.

    Args:
        path: The file.
        remedy: What makes it again.

    Raises:
        FileNotFoundError: If there is none.
        StudyError: If it is damaged.
    """
    state = path.stat()
    if (damage := _damage(path, state.st_size, state.st_mtime_ns)) is not None:
        expected, got = damage
        raise StudyError("A table is damaged.", file=path, key=CHECKSUM, expected=expected, got=got, remedy=remedy)


@lru_cache(maxsize=4096)
def _damage(path: Path, size: int, time_ns: int) -> tuple[str, str] | None:
    """What was expected and what was found, if a file is not as it was written."""
    if size == 0:
        return "a table", "an empty file"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = list(_MARKED.finditer(content))
        said = {match[1].decode() for match in found}
        if not said:
            # Facts that speak of one: the checksum itself is what was hit.
            if content.find(_IS_SEALED) >= 0:
                return "a checksum", "none that can be read"
            log.info("%s is of an earlier version and has no checksum: damage may go unseen", path)
            return None
        crc = f"{_crc(content, [match.start(1) for match in found]):08x}"
    if said == {crc}:
        return None
    return f"crc32 {' and '.join(sorted(said))}, as when it was written", f"crc32 {crc}"


def read_table(path: str | Path, *, remedy: str | None = None) -> pl.DataFrame:
    """A Parquet table, once it agrees with its checksum.

    Args:
        path: Its file.
        remedy: What makes it again; by default to have Snakemake do so.

    Raises:
        FileNotFoundError: If there is none.
        StudyError: If it is damaged or cannot be read.
    """
    path = Path(path)
    remedy = remedy or made_again(path)
    check_table(path, remedy=remedy)
    try:
        return pl.read_parquet(path, glob=False)
    # The second is what Polars' own code, which is no Python, ends with where bytes make no sense.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise StudyError("A table cannot be read.", file=path, got=str(error), remedy=remedy) from error


def made_again(path: Path) -> str:
    """What makes a result of the workflow again."""
    return f"Run: snakemake --force {path}"


def table_facts(path: Path) -> dict[str, Any]:
    """What a Parquet table was made by; nothing for one of an earlier version."""
    return _facts(pl.read_parquet_metadata(path).get(FACTS, "{}"))


def schema_facts(schema: pa.Schema) -> dict[str, Any]:
    """The same of an Arrow file's table."""
    return _facts((schema.metadata or {}).get(FACTS.encode(), b"{}"))


def _facts(told: str | bytes) -> dict[str, Any]:
    facts = json.loads(told)
    facts.pop("checksum", None)
    return facts
