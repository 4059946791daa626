"""Degenerate definitions: those that mark nearly every feature of a model."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

NEARLY_ALL = 0.9
"""Share of a model's features from which on a definition that marks them is degenerate for the model: what it counts
there is d_model, and no model with outliers differs from one without."""

MARK = "*"
"""What stands beside such a figure where people read it."""

MARKED = f"{MARK} This definition marks (nearly) every feature of the model: it is degenerate there, and in no test."
"""What the mark means."""


def is_degenerate() -> pl.Expr:
    """Whether a row's definition marks at least 90 % of its model's features: a row of `ModelComparison`."""
    return (pl.col("d_model_share") >= NEARLY_ALL).fill_null(False).alias("is_degenerate")


def share_of_features(systematic: pl.DataFrame, run: Path) -> float | None:
    """The share of a model's features that a preset marks; None if the recording does not say how many there are.

    Args:
        systematic: Rows of the table `Systematic` by one preset, first tokens in or out.
        run: run.json of the recording.
    """
    try:
        d_model = json.loads(run.read_text(encoding="utf-8"))["d_model"]
    except (OSError, ValueError, KeyError):
        return None
    return systematic.filter("is_systematic")["feature"].n_unique() / d_model


def with_degenerate(models: pl.DataFrame) -> pl.DataFrame:
    """The comparison with the column `is_degenerate`, for tables that were written without it too.

    Args:
        models: The table `ModelComparison`.
    """
    return models.with_columns(is_degenerate())
