"""What others have published, as tables: the figures that a recording is held against."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

import polars as pl

Reference = Literal[
    "known_outliers", "known_super_experts", "published_dettmers2022", "published_maxima", "published_survey2025"
]
"""The tables. Each file opens with a comment that says where its figures come from and what they mean."""

_TEXT = ("repo", "tap", "position", "source", "note", "status", "where", "model")


def reference_table(name: Reference) -> pl.DataFrame:
    """One table of published figures; an empty cell is null."""
    text = files(__name__).joinpath(f"{name}.csv").read_bytes()
    table = pl.read_csv(text, comment_prefix="#")
    # A column without any text reads as one of numbers or of nothing; its type must not hang on what is filled in.
    return table.with_columns(pl.col(column).cast(pl.String) for column in _TEXT if column in table.columns)
