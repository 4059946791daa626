"""The largest activation of each feature, layer by layer."""

from __future__ import annotations

import polars as pl


def peaks_by_layer(rows: pl.LazyFrame) -> pl.DataFrame:
    """The largest |x| of each feature at each tap and layer, over the sequences.

    Args:
        rows: Rows of `schemas.LayerOutlier`.

    Returns:
        Columns `tap`, `layer`, `feature`, `peak`.
    """
    return rows.group_by("tap", "layer", "feature").agg(pl.col("peak").max()).sort("tap", "layer", "feature").collect()
