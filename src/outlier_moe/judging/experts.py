"""From the tables of routers and experts to figures over the whole corpus, at any magnitude of the ladder."""

from __future__ import annotations

import polars as pl

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.tables import moe as schemas_moe

PEAK_COLUMNS = ["peak", "peak_feature", "peak_sequence", "peak_position", "peak_gate"]


def summarise_experts(
    experts: pl.LazyFrame, routers: pl.LazyFrame, *, ladder: Ladder, magnitude: float
) -> pl.LazyFrame:
    """What each expert does over all sequences.

    Args:
        experts: Rows of `tables.moe.Expert`, of one shard or of several.
        routers: Rows of `tables.moe.Router` of the same.
        ladder: The ladder that they were counted on.
        magnitude: The |x| at mlp_in from which a token is an outlier token: an edge of the ladder.

    Returns:
        The table `tables.moe.ExpertSummary`.

    Raises:
        StudyError: If the magnitude is no edge, or lies below the floor.
    """
    k = ladder.index(magnitude)
    n_rest = pl.col("n_tokens") - pl.col("n_outlier_tokens")
    n_layer_rest = pl.col("n_layer_tokens") - pl.col("n_layer_outlier_tokens")
    summary = (
        _loads(experts, k)
        .join(_tokens(routers, k), on="layer")
        .join(_peaks(experts), on=["layer", "expert"])
        .with_columns(
            outlier_share=_ratio(pl.col("n_outlier_tokens"), pl.col("n_layer_outlier_tokens")),
            rest_share=_ratio(n_rest, n_layer_rest),
        )
        .with_columns(outlier_lift=pl.col("outlier_share") / pl.col("rest_share"))
        .sort("layer", "expert")
    )
    return schemas_moe.ExpertSummary.cast(summary)


def _at_edge(column: str, k: int) -> pl.Expr:
    """The entry of a list for the k-th edge; lists end where nothing is left to count."""
    return pl.col(column).list.get(k, null_on_oob=True).fill_null(0)


def _ratio(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    return pl.when(whole > 0).then(part / whole)


def _tokens(routers: pl.LazyFrame, k: int) -> pl.LazyFrame:
    """Tokens of each layer, and outlier tokens among them."""
    return routers.group_by("layer").agg(
        n_layer_tokens=pl.col("n_tokens").cast(pl.Int64).sum(),
        n_layer_outlier_tokens=_at_edge("n_outlier_tokens", k).cast(pl.Int64).sum(),
    )


def _loads(experts: pl.LazyFrame, k: int) -> pl.LazyFrame:
    """Tokens of each expert, and outlier tokens among them."""
    return experts.group_by("layer", "expert", "kind").agg(
        pl.col("n_tokens").cast(pl.Int64).sum(),
        pl.col("n_nonfinite").sum(),
        n_outlier_tokens=_at_edge("n_outlier_tokens", k).cast(pl.Int64).sum(),
        mean_gate=pl.col("gate_sum").sum() / pl.col("n_tokens").cast(pl.Int64).sum(),
    )


def _peaks(experts: pl.LazyFrame) -> pl.LazyFrame:
    """The largest peak of each expert; of several the one in the first sequence."""
    return (
        experts.sort(["peak", "sequence"], descending=[True, False])
        .group_by("layer", "expert", maintain_order=True)
        .first()
        .rename({"sequence": "peak_sequence"})
        .select("layer", "expert", *PEAK_COLUMNS)
    )
