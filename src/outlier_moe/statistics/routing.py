"""Where outlier tokens are routed, against the other tokens."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.judging.experts import summarise_experts
from outlier_moe.statistics.comparable import false_discovery_rates
from outlier_moe.statistics.significance import verdict
from outlier_moe.tables.checked import ExpertRouting, OutlierRouting

MOST_FLIPS = 9999
"""Random choices of signs tried where there are more than so many."""


def outlier_routing(
    experts: pl.DataFrame, *, ladder: Ladder, magnitude: float, model: str, seed: int = 0
) -> pl.DataFrame:
    """Whether each layer's outlier tokens go to other experts than the rest.

    What is counted are pairs of a token and a routed expert. Tokens of one text depend on each other and each has
    several experts, so that a chi-square test of the counts would be far too sure: the p-value takes sequences as the
    unit. In each, the share of the outlier tokens' load that every expert has less its share of the rest's is as likely
    to point one way as the other if outlier tokens are routed like the rest, so the signs are flipped, sequence by
    sequence, and the squared length of the mean is compared.

    Args:
        experts: Rows of `tables.moe.Expert`.
        ladder: The ladder that they were counted on.
        magnitude: The |x| at mlp_in from which a token is an outlier token: an edge of the ladder.
        model: Its name.
        seed: Decides the signs, where there are too many to try all.

    Returns:
        The table `OutlierRouting`.

    Raises:
        StudyError: If the magnitude is no edge, or lies below the floor.
    """
    k = ladder.index(magnitude)
    counted = experts.filter(pl.col("kind").cast(pl.String) != "shared").with_columns(
        n_outliers=pl.col("n_outlier_tokens").list.get(k, null_on_oob=True).fill_null(0).cast(pl.Int64),
        n_tokens=pl.col("n_tokens").cast(pl.Int64),
    )
    rows = []
    for (layer,), of_layer in counted.group_by("layer", maintain_order=True):
        outliers, rest = _counts(of_layer)
        rows.append({"layer": layer, **_statement(outliers, rest, seed=seed)})
    if not rows:
        return OutlierRouting.create_empty()
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col("p_value", "smallest_p_value").cast(pl.Float64), model=pl.lit(model), magnitude=pl.lit(magnitude)
    )
    table = table.with_columns(q_value=false_discovery_rates(table["p_value"])).with_columns(verdict()).sort("layer")
    return OutlierRouting.validate(table.select(OutlierRouting.column_names()), cast=True)


def expert_routing(
    experts: pl.DataFrame, routers: pl.DataFrame, *, ladder: Ladder, magnitude: float, model: str
) -> pl.DataFrame:
    """Which experts the outlier tokens are routed to, against the rest.

    Args:
        experts: Rows of `tables.moe.Expert`.
        routers: Rows of `tables.moe.Router` of the same recording.
        ladder: The ladder that they were counted on.
        magnitude: The |x| at mlp_in from which a token is an outlier token: an edge of the ladder.
        model: Its name.

    Returns:
        The table `ExpertRouting`.

    Raises:
        StudyError: If the magnitude is no edge, or lies below the floor.
    """
    summary = summarise_experts(experts.lazy(), routers.lazy(), ladder=ladder, magnitude=magnitude).collect()
    table = summary.with_columns(pl.col("kind").cast(pl.String), model=pl.lit(model), magnitude=pl.lit(magnitude))
    return ExpertRouting.validate(table.select(ExpertRouting.column_names()), cast=True)


def most_striking(routing: pl.DataFrame) -> pl.DataFrame:
    """The rows of `ExpertRouting` whose two shares exist, those that differ most for their numbers of tokens first.

    The order is that of the difference over its standard error if the shares were alike and tokens independent. They
    are not, so that it is no test; but without it, experts of layers with one outlier token would always stand first.
    """
    n, n_outliers = pl.col("n_layer_tokens"), pl.col("n_layer_outlier_tokens")
    pooled = pl.col("n_tokens") / n
    variance = pooled * (1 - pooled) * (1 / n_outliers + 1 / (n - n_outliers))
    # An expert that works on all tokens of its layer has no difference and no error.
    score = pl.when(variance > 0).then((pl.col("outlier_share") - pl.col("rest_share")).abs() / variance.sqrt())
    return routing.filter(pl.col("outlier_lift").is_not_null()).sort(
        [score.fill_null(0), "model", "layer", "expert"], descending=[True, False, False, False]
    )


def _counts(rows: pl.DataFrame) -> tuple[Int64[np.ndarray, "sequence expert"], Int64[np.ndarray, "sequence expert"]]:
    """Pairs of outlier tokens and of the others with each expert, in each sequence."""
    sequences, sequence = np.unique(rows["sequence"].to_numpy(), return_inverse=True)
    experts, expert = np.unique(rows["expert"].to_numpy(), return_inverse=True)
    outliers = np.zeros((len(sequences), len(experts)), np.int64)
    outliers[sequence, expert] = rows["n_outliers"].to_numpy()
    pairs = np.zeros_like(outliers)
    pairs[sequence, expert] = rows["n_tokens"].to_numpy()
    return outliers, pairs - outliers


def _statement(
    outliers: Int64[np.ndarray, "sequence expert"], rest: Int64[np.ndarray, "sequence expert"], *, seed: int
) -> dict[str, Any]:
    both = (outliers.sum(axis=1) > 0) & (rest.sum(axis=1) > 0)
    totals = outliers.sum(axis=0), rest.sum(axis=0)
    found: dict[str, Any] = {
        "n_experts": outliers.shape[1],
        "n_outlier_pairs": int(totals[0].sum()),
        "n_rest_pairs": int(totals[1].sum()),
        "n_sequences": int(both.sum()),
        "chi_square": None,
        "cramers_v": None,
        "load_distance": None,
        "p_value": None,
        "smallest_p_value": None,
        "is_exact": False,
        "reason": None,
    }
    if not totals[0].sum() or not totals[1].sum():
        lacking = "is an outlier token" if not totals[0].sum() else "is none"
        return {**found, "reason": f"no token {lacking} at this magnitude"}
    if outliers.shape[1] < 2:
        return {**found, "reason": "there is but one expert"}
    # Most studies have no experts, and start faster without it.
    from scipy import stats

    chi_square, *_ = cast(tuple[float, ...], stats.chi2_contingency(np.stack(totals), correction=False))
    chi_square = float(chi_square)
    shares = [total / total.sum() for total in totals]
    effects = {
        "chi_square": chi_square,
        "cramers_v": float(np.sqrt(chi_square / (totals[0].sum() + totals[1].sum()))),
        "load_distance": float(np.abs(shares[0] - shares[1]).sum() / 2),
    }
    if both.sum() < 2:
        return {**found, **effects, "reason": "fewer than two sequences have tokens of both kinds"}
    differences = outliers[both] / outliers[both].sum(axis=1, keepdims=True)
    differences = differences - rest[both] / rest[both].sum(axis=1, keepdims=True)
    p, is_exact = sign_flip_p_value(differences, seed=seed)
    # All signs flipped alike give the same length: two of 2^n choices, at least, reach the one observed.
    smallest = max(2.0 ** (1 - len(differences)), 0.0 if is_exact else 1 / (1 + MOST_FLIPS))
    return {**found, **effects, "p_value": p, "smallest_p_value": smallest, "is_exact": is_exact}


def sign_flip_p_value(differences: Float64[np.ndarray, "sequence expert"], *, seed: int = 0) -> tuple[float, bool]:
    """The p-value of "each row is as likely as its negative", by the squared length of the rows' mean.

    Returns:
        The p-value, and whether it comes from all choices of signs.
    """
    n = len(differences)
    # Squared lengths of sums follow from the rows' products with each other: far fewer than there are experts.
    products = differences @ differences.T
    is_exact = 2**n <= MOST_FLIPS
    if is_exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (MOST_FLIPS, n))
    lengths = np.einsum("fi,ij,fj->f", signs, products, signs, optimize=True)
    reached = int((lengths >= products.sum() * (1 - 1e-9)).sum())
    return (reached / len(signs), True) if is_exact else ((1 + reached) / (1 + len(signs)), False)
