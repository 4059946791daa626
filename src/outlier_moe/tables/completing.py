"""Tables made to have all columns of their schema."""

from __future__ import annotations

import dataframely as dy
import polars as pl


def completed(schema: type[dy.Schema], table: pl.DataFrame) -> pl.DataFrame:
    """A validated table with all columns of its schema.

    Those that it lacks, as a control alone lacks what describes experts, are null; those that the schema lacks go.
    """
    if table.is_empty():
        return schema.create_empty()
    absent = [pl.lit(None).alias(name) for name in schema.column_names() if name not in table.columns]
    return schema.validate(table.with_columns(absent), cast=True)
