"""When a test finds something: the one significance level, and the verdict of a test by it."""

from __future__ import annotations

import polars as pl

LEVEL = 0.05
"""The largest q-value of what counts as found: the false discovery rate of a family of tests. A test whose smallest
attainable p-value lies above it finds nothing, whatever the values are."""


def verdict(direction: pl.Expr | None = None) -> pl.Expr:
    """The column `verdict` of a table of tests; null where there is no test.

    `higher`, `lower`: found, with an effect above or below 0. `differs`: found, by a test that has no direction.
    `none`: not found, and it could have been. `too_few`: so few values cannot give a p-value of `LEVEL`.

    Args:
        direction: The effect whose sign is told; without it, what is found `differs`.
    """
    differs = pl.lit("differs")
    found = (
        differs
        if direction is None
        else pl.when(direction > 0).then(pl.lit("higher")).when(direction < 0).then(pl.lit("lower")).otherwise(differs)
    )
    return (
        pl.when(pl.col("p_value").is_null())
        .then(None)
        .when(pl.col("q_value") <= LEVEL)
        .then(found)
        .when(pl.col("smallest_p_value") > LEVEL)
        .then(pl.lit("too_few"))
        .otherwise(pl.lit("none"))
        .alias("verdict")
    )
