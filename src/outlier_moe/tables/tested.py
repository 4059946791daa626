"""The tables of tests over models: one row a question, with the n behind it, and a reason where there is no answer."""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.tables.comparison import figure_enum
from outlier_moe.tables.schemas import first_token_enum


class _Question(dy.Schema):
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    group = dy.Enum(["all", "dense", "moe"], primary_key=True)
    """The models looked at."""
    x = dy.Enum(["total_params_b", "active_params_b", "perplexity"], primary_key=True)
    y = dy.Enum(figure_enum.categories, primary_key=True)
    n_models = dy.UInt32()


class PhaseTransition(_Question):
    """`comparison/phase_transitions.parquet`: whether a figure jumps along an axis. Parameters are taken as log10."""

    n_missing = dy.UInt32()
    """Models of the group that lack x or y."""
    alternative = dy.Enum(["rise", "either"])
    """What the tests look for: a rise with size (with falling perplexity), or a change in either direction."""
    verdict = dy.Enum(["none", "too_few", "mixed", "fall", "rise", "jump"], nullable=True)
    """By the q-values. `jump`: y rises with a model's strength at a change point, and more than a line says. `rise`: it
    rises, and no jump stands out. `fall`: it falls. `mixed`: it does both. `none`: neither is seen, and a jump could
    have been. `too_few`: nothing is seen, and so few models could not show a jump of any size."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """Permutation test of the best change point; it accounts for the search over all change points."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """The same, accounting for all tests of this table (Benjamini-Hochberg): of a change point upwards and in either
    direction, and Kendall's, in every row."""
    p_value_either = dy.Float64(nullable=True, min=0, max=1)
    q_value_either = dy.Float64(nullable=True, min=0, max=1)
    p_value_beyond_line = dy.Float64(nullable=True, min=0, max=1)
    """p-value of a line with a step against a line (permuted residuals, approximate)."""
    q_value_beyond_line = dy.Float64(nullable=True, min=0, max=1)
    """The same, accounting for all rows that rise; null for the others."""
    n_permutations = dy.UInt32()
    is_exact = dy.Bool()
    """Whether these are all orders of the models."""
    location = dy.Float64(nullable=True)
    """The change point, in units of x: the middle (of logarithms, for parameters) of the gap that it falls into."""
    location_low = dy.Float64(nullable=True)
    location_high = dy.Float64(nullable=True)
    """Upper end: 95 % of the resamples of the models (and of their sequences, where given) lie between, by
    percentiles."""
    n_resamples = dy.UInt32()
    before = dy.Float64(nullable=True)
    """Mean of y over the models on the weaker side."""
    after = dy.Float64(nullable=True)
    jump = dy.Float64(nullable=True)
    residual_sd = dy.Float64(nullable=True)
    """Standard deviation about the two means."""
    best_trend = dy.Enum(["constant", "line", "logistic_step", "change_point"], nullable=True)
    """The description with the lowest AICc."""
    kendall_tau = dy.Float64(nullable=True)
    """Kendall's tau of y with a model's strength: positive if y grows with parameters, or as the perplexity falls."""
    kendall_p_value = dy.Float64(nullable=True, min=0, max=1)
    kendall_q_value = dy.Float64(nullable=True, min=0, max=1)
    level = dy.Float64()
    power = dy.Float64()
    detectable_jump_sd = dy.Float64(nullable=True)
    """Smallest jump, in residual standard deviations, that is found with this level and power, before the correction
    for many tests; null if so few models cannot show any."""
    detectable_jump = dy.Float64(nullable=True)
    """The same jump in units of y."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """Smallest p-value that so many models can give for a jump there."""
    reason = dy.String(nullable=True)
    """Why there is no test."""

    @dy.rule()
    def test_or_reason(cls) -> pl.Expr:
        return pl.col("p_value").is_null() == pl.col("reason").is_not_null()


class TrendComparison(_Question):
    """`comparison/trends.parquet`: four descriptions of each figure along each axis."""

    model = dy.Enum(["constant", "line", "logistic_step", "change_point"], primary_key=True)
    n_parameters = dy.UInt32()
    """Parameters of the description, with the variance of the residuals."""
    rss = dy.Float64(nullable=True, min=0)
    aicc = dy.Float64(nullable=True)
    """AICc; null if n_models is at most n_parameters + 1, where it is not defined."""
    delta_aicc = dy.Float64(nullable=True, min=0)
    """AICc above that of the best description."""
    weight = dy.Float64(nullable=True, min=0, max=1)
    """Akaike weight among the descriptions considered."""
    before = dy.Float64(nullable=True)
    """Value of y at the weak end of the axis."""
    after = dy.Float64(nullable=True)
    location = dy.Float64(nullable=True)
    """Where the step is, in units of x."""
    width = dy.Float64(nullable=True)
    """What a logistic step takes from 10 % to 90 %: perplexity, or a factor of the parameters."""
    reason = dy.String(nullable=True)
    """Why it was not considered."""


class MatchedPair(dy.Schema):
    """`comparison/pairs.parquet`: MoE models beside the dense models nearest to them, one row per figure."""

    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    matched_by = dy.Enum(["total_params_b", "active_params_b", "perplexity"], primary_key=True)
    moe = dy.String(primary_key=True)
    dense = dy.String(primary_key=True)
    y = dy.Enum(figure_enum.categories, primary_key=True)
    rank = dy.UInt32(min=1)
    """1 for the nearest dense model on a logarithmic scale, 2 for the next."""
    factor = dy.Float64(min=1)
    """How far apart the two are: the larger of `moe_x` and `dense_x` over the smaller."""
    is_matched = dy.Bool()
    """Whether the pair is tested: each model once, and within the allowed factor."""
    moe_x = dy.Float64()
    dense_x = dy.Float64()
    moe_y = dy.Float64(nullable=True)
    dense_y = dy.Float64(nullable=True)
    difference = dy.Float64(nullable=True)
    """MoE less dense."""


class RankTestResult(dy.Schema):
    """`comparison/dense_moe.parquet`: whether dense and MoE models differ in a figure, and what goes with it."""

    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    question = dy.Enum(
        [
            "matched_total_params_b",
            "matched_active_params_b",
            "matched_perplexity",
            "dense_against_moe",
            "sparsity_of_moe",
            "sparsity_of_all",
            "by_routing",
            "by_family",
        ],
        primary_key=True,
    )
    """`matched_*`: MoE less dense in pairs of like size. `dense_against_moe`: all MoE against all dense models.
    `sparsity_*`: the share of the parameters that are active, among MoE models or all. `by_*`: groups of models."""
    test = dy.Enum(["signed_rank", "mann_whitney", "kendall", "spearman", "kruskal_wallis"], primary_key=True)
    y = dy.Enum(figure_enum.categories, primary_key=True)
    n_moe = dy.UInt32()
    n_dense = dy.UInt32()
    n_pairs = dy.UInt32(nullable=True)
    effect = dy.Float64(nullable=True)
    """signed_rank: share of pairs in which the MoE has more, less the share in which it has less. mann_whitney: Cliff's
    delta, positive if MoE models have more. kendall, spearman: tau, rho. kruskal_wallis: epsilon squared."""
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """Two-sided."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """p-value that accounts for all tests of this table (Benjamini-Hochberg)."""
    is_exact = dy.Bool()
    """Whether the p-value counts all arrangements; else random ones."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """The smallest p-value that so many models can give."""
    verdict = dy.Enum(["none", "too_few", "differs", "lower", "higher"], nullable=True)
    """By the q-value. `higher`, `lower`: the effect is above or below 0. `differs`: groups do. `none`: nothing is seen,
    and it could have been. `too_few`: so few models could not show anything. Null without a test."""
    reason = dy.String(nullable=True)
    """Why there is no test."""

    @dy.rule()
    def test_or_reason(cls) -> pl.Expr:
        return pl.col("p_value").is_null() == pl.col("reason").is_not_null()


class GroupSummary(dy.Schema):
    """`comparison/groups.parquet`: a figure over the models of one kind, routing or family."""

    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    by = dy.Enum(["kind", "routing", "family"], primary_key=True)
    group = dy.String(primary_key=True)
    y = dy.Enum(figure_enum.categories, primary_key=True)
    n_models = dy.UInt32()
    median = dy.Float64(nullable=True)
    smallest = dy.Float64(nullable=True)
    largest = dy.Float64(nullable=True)
    reason = dy.String(nullable=True)
