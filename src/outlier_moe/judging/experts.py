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
    tokens = _tokens(routers, k).select("layer", n_layer_tokens="n_tokens", n_layer_outlier_tokens="n_outlier_tokens")
    n_rest = pl.col("n_tokens") - pl.col("n_outlier_tokens")
    n_layer_rest = pl.col("n_layer_tokens") - pl.col("n_layer_outlier_tokens")
    summary = (
        _loads(experts, k)
        .join(tokens, on="layer")
        .join(_peaks(experts), on=["layer", "expert"])
        .with_columns(
            outlier_share=_ratio(pl.col("n_outlier_tokens"), pl.col("n_layer_outlier_tokens")),
            rest_share=_ratio(n_rest, n_layer_rest),
        )
        .with_columns(outlier_lift=pl.col("outlier_share") / pl.col("rest_share"))
        .sort("layer", "expert")
    )
    return schemas_moe.ExpertSummary.cast(summary)


def summarise_routers(
    experts: pl.LazyFrame, routers: pl.LazyFrame, *, ladder: Ladder, magnitude: float
) -> pl.LazyFrame:
    """How each router spreads the tokens of all sequences, and the outlier tokens among them.

    Args:
        experts: Rows of `tables.moe.Expert`, of one shard or of several.
        routers: Rows of `tables.moe.Router` of the same.
        ladder: The ladder that they were counted on.
        magnitude: The |x| at mlp_in from which a token is an outlier token: an edge of the ladder.

    Returns:
        The table `tables.moe.RouterSummary`.

    Raises:
        StudyError: If the magnitude is no edge, or lies below the floor.
    """
    k = ladder.index(magnitude)
    n_rest = pl.col("n_tokens") - pl.col("n_outlier_tokens")
    rest_share_sum = pl.col("top_gate_share_sum") - pl.col("outlier_top_gate_share_sum")
    summary = (
        _tokens(routers, k)
        .join(_spread(experts, routers, k), on="layer", how="left")
        .with_columns(
            n_dead=pl.col("n_experts") - pl.col("n_alive").fill_null(0),
            outlier_top_gate_share=_ratio(pl.col("outlier_top_gate_share_sum"), pl.col("n_outlier_tokens")),
            rest_top_gate_share=_ratio(rest_share_sum, n_rest),
        )
        .sort("layer")
    )
    return schemas_moe.RouterSummary.cast(summary)


def _at_edge(column: str, k: int) -> pl.Expr:
    """The entry of a list for the k-th edge; lists end where nothing is left to count."""
    return pl.col(column).list.get(k, null_on_oob=True).fill_null(0)


def _ratio(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    return pl.when(whole > 0).then(part / whole)


def _tokens(routers: pl.LazyFrame, k: int) -> pl.LazyFrame:
    """Tokens of each layer, outlier tokens among them, and their sums."""
    return routers.group_by("layer").agg(
        pl.col("n_experts", "n_choices").first(),
        pl.col("n_tokens").cast(pl.Int64).sum(),
        pl.col("top_gate_share_sum").sum(),
        n_outlier_tokens=_at_edge("n_outlier_tokens", k).cast(pl.Int64).sum(),
        outlier_top_gate_share_sum=_at_edge("outlier_top_gate_share_sum", k).sum(),
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


def _spread(experts: pl.LazyFrame, routers: pl.LazyFrame, k: int) -> pl.LazyFrame:
    """How the load of each layer, and that of its outlier tokens, is spread over the experts."""
    n_experts = routers.group_by("layer").agg(pl.col("n_experts").first())
    load, outlier_load = pl.col("n_tokens"), pl.col("n_outlier_tokens")
    rest_load = load - outlier_load
    mean = load.sum() / pl.col("n_experts").first()
    variance = (load**2).sum() / pl.col("n_experts").first() - mean**2
    distance = (outlier_load / outlier_load.sum() - rest_load / rest_load.sum()).abs().sum() / 2
    return (
        _loads(experts.filter(pl.col("kind") != "shared"), k)
        .join(n_experts, on="layer")
        .group_by("layer")
        .agg(
            n_alive=pl.len().cast(pl.Int64),
            load_entropy=_entropy(load),
            load_cv=variance.clip(0).sqrt() / mean,
            outlier_load_entropy=_entropy(outlier_load),
            load_distance=pl.when((outlier_load.sum() > 0) & (rest_load.sum() > 0)).then(distance),
        )
    )


def _entropy(load: pl.Expr) -> pl.Expr:
    """Entropy of the shares of a load in units of ln(n_experts); null without a load."""
    share = load / load.sum()
    nats = -pl.when(share > 0).then(share * share.log()).otherwise(0).sum()
    n_experts = pl.col("n_experts").first()
    relative = pl.when(n_experts > 1).then(nats / n_experts.log()).otherwise(1.0)
    return pl.when(load.sum() > 0).then(relative)
