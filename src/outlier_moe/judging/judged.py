"""The systematic features of a model, from what each of its sequences counts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from outlier_moe.judging.rule import is_systematic
from outlier_moe.judging.sequence_tables import SequenceTables, layers_affected
from outlier_moe.tables import schemas


def judged_features(tables: Iterable[SequenceTables]) -> pl.DataFrame:
    """The systematic features of every table: those rows of `schemas.Systematic`, without where their peaks lie.

    Args:
        tables: The tables of all presets.
    """
    rows = [_judged(table) for table in tables]
    # In the order of `systematic.parquet`.
    order = ["preset", pl.col("first_token").cast(pl.String), "feature", "sequence"]
    table = pl.concat([schemas.JudgedFeature.create_empty(), *rows], how="diagonal_relaxed").sort(order)
    return schemas.JudgedFeature.validate(table, cast=True)


def _judged(tables: SequenceTables) -> pl.DataFrame:
    pooled = tables.preset.unit == "feature"
    sites = np.bitwise_or.reduce(tables.sites, axis=0, keepdims=True) if pooled else tables.sites
    sums = [array.sum(axis=0, keepdims=True) if pooled else array for array in (tables.n_positions, tables.n_values)]
    peak = tables.peak.max(axis=0, keepdims=True) if pooled else tables.peak
    affected = layers_affected(sites, tables.preset)
    n_sites = np.bitwise_count(sites).sum(axis=(1, 2), dtype=np.int64)
    positions = tables.positions * (tables.n_sequences if pooled else 1)
    sequence, feature = np.nonzero(_found(tables, affected, sums[0] / positions))
    at = sequence, feature
    columns: dict[str, np.ndarray] = {
        "feature": feature,
        "peak": peak[at],
        "layer_fraction": affected[at] / tables.layers,
    }
    if not pooled:
        columns["sequence"] = sequence
    if tables.preset.rule == "systematic":
        columns["position_fraction"] = sums[0][at] / positions
        columns["position_fraction_per_site"] = sums[1][at] / (n_sites[at] * positions)
        columns["n_values"] = sums[1][at]
    return pl.DataFrame(columns).with_columns(
        preset=pl.lit(tables.preset.name), first_token=pl.lit(tables.first_token, schemas.first_token_enum)
    )


def _found(
    tables: SequenceTables, affected: Int64[np.ndarray, "sequence feature"], position_fraction: np.ndarray
) -> Bool[np.ndarray, "sequence feature"]:
    if tables.preset.rule == "massive":
        return affected > 0
    return is_systematic(affected / tables.layers, position_fraction, tables.preset)
