"""What others have published, as tables: the figures that a recording is held against."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

import polars as pl

from outlier_moe.errors import StudyError

Reference = Literal[
    "known_outliers", "known_super_experts", "published_dettmers2022", "published_maxima", "published_survey2025"
]
"""The tables. Each file opens with a comment that says where its figures come from and what they mean."""

_TEXT = ("repo", "tap", "position", "source", "note", "status", "where", "model")


_INDICES = ("layer", "expert", "feature")


def reference_table(name: Reference) -> pl.DataFrame:
    """One table of published figures; an empty cell is null.

    Layers, experts and features count from 0 here, whatever `index_base` says that their source counts from. Where it
    says nothing (null) they are as published, and can be held against nothing.
    """
    return read_reference(files(__name__).joinpath(f"{name}.csv").read_bytes(), file=f"{name}.csv")


def read_reference(text: bytes, *, file: str) -> pl.DataFrame:
    """The same of a file's content.

    Args:
        text: The content.
        file: Its name, for messages.

    Raises:
        StudyError: If it has indices of layers, experts or features, and does not say what they count from.
    """
    table = pl.read_csv(text, comment_prefix="#")
    # A column without any text reads as one of numbers or of nothing; its type must not hang on what is filled in.
    table = table.with_columns(pl.col(column).cast(pl.String) for column in _TEXT if column in table.columns)
    if "tap" in table.columns:
        table = table.with_columns(pl.col("tap").fill_null("residual"))
    indices = [column for column in _INDICES if column in table.columns]
    if not indices:
        return table
    bases = set(table["index_base"].drop_nulls()) if "index_base" in table.columns else {"no such column"}
    if not bases <= {0, 1}:
        raise StudyError(
            "A table of published figures does not say what its indices count from.",
            file=file,
            key="index_base",
            expected="0, 1, or nothing where it is not known",
            got=", ".join(map(str, bases)),
        )
    base = pl.col("index_base").cast(pl.Int64)
    return table.with_columns(base, *(pl.col(column).cast(pl.Int64) - base.fill_null(0) for column in indices))
