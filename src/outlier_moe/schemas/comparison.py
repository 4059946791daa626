"""Every table of statistics: one row a statement, with the n behind it, and a reason where a figure is missing."""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.schemas import first_token_enum, tap_enum

COUNT_FIGURES = ("n_systematic", "n_pairs", "d_model_share", "n_values")
"""Figures that exist, as 0, where no feature is systematic."""

FRACTION_FIGURES = tuple(
    f"{name}_{kind}"
    for name in ("layer_fraction", "position_fraction", "position_fraction_per_site")
    for kind in ("mean", "median")
)

FIGURES = (
    *COUNT_FIGURES,
    *FRACTION_FIGURES,
    "peak_median",
    "peak_largest",
    "perplexity",
    "kurtosis_of_feature_rms_mean",
    "kurtosis_of_feature_rms_median",
    "excess_kurtosis_mean",
    "excess_kurtosis_median",
)
"""The figures that are resampled, named as in `ModelComparison`. Kurtosis is that of the preset's view: the mean or the
median over its sites of each site's mean over the sequences."""

figure_enum = pl.Enum(FIGURES)


class ModelResample(dy.Schema):
    """`resamples.parquet` of a model: each figure for each draw of its sequences, from which all intervals follow.

    Two models with the same `seed`, `n_sequences` and number of resamples have the same sequences in resample i.
    """

    model = dy.String(primary_key=True)
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    figure = dy.Enum(figure_enum.categories, primary_key=True)
    estimate = dy.Float64(nullable=True)
    resamples = dy.List(dy.Float64(nullable=True))
    """Null where the figure does not exist. Empty if there is but one sequence."""
    leave_one_out = dy.List(dy.Float64(nullable=True))
    """The figure without each sequence in turn."""
    n_sequences = dy.UInt32()
    seed = dy.UInt64()
    corpus_sha256 = dy.String()
    text_sha256 = dy.String()
    """Alike for two models if and only if sequence i holds the same tokens for both."""


class _Interval(dy.Schema):
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    figure = dy.Enum(figure_enum.categories, primary_key=True)
    estimate = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    standard_error = dy.Float64(nullable=True)
    share_below = dy.Float64(nullable=True, min=0, max=1)
    """Resamples below the estimate; near 1 for what is pooled by union or maximum, which more sequences only raise."""
    share_above = dy.Float64(nullable=True, min=0, max=1)
    confidence_level = dy.Float64(min=0, max=1)
    n_sequences = dy.UInt32()
    n_resamples = dy.UInt32()
    """Resamples in which the figure exists."""
    reason = dy.String(nullable=True)
    """Why there is no interval."""

    @dy.rule()
    def interval_or_reason(cls) -> pl.Expr:
        return pl.col("low").is_null() == pl.col("reason").is_not_null()


class FigureInterval(_Interval):
    """`comparison/intervals.parquet`: a BCa interval for every figure of every row of the comparison."""

    model = dy.String(primary_key=True)


class FigureDifference(_Interval):
    """`comparison/differences.parquet`: the first model's figure less the second's, with its BCa interval."""

    model = dy.String(primary_key=True)
    other = dy.String(primary_key=True)
    is_paired = dy.Bool()
    """Whether each resample draws the same sequences of tokens for both."""
    n_sequences_other = dy.UInt32()
    pairing = dy.String()
    """How the two were paired, or why not."""


class Stability(dy.Schema):
    """`comparison/stability.parquet`: a figure of fewer of a model's sequences, over all or many choices of them."""

    model = dy.String(primary_key=True)
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    figure = dy.Enum(figure_enum.categories, primary_key=True)
    n_sequences = dy.UInt32(primary_key=True)
    """Sequences that each choice takes, each once."""
    n_choices = dy.UInt32()
    """Choices in which the figure exists."""
    is_exhaustive = dy.Bool()
    """Whether they are all there are."""
    mean = dy.Float64(nullable=True)
    standard_deviation = dy.Float64(nullable=True)
    """Over the choices; null of one choice. Choices overlap, so that it shrinks to 0 at all sequences."""
    smallest = dy.Float64(nullable=True)
    largest = dy.Float64(nullable=True)
    reason = dy.String(nullable=True)


class LeftOut(dy.Schema):
    """The models that a comparison does not speak of."""

    model = dy.String(primary_key=True)
    reason = dy.String()


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
    verdict = dy.Enum(["none", "trend", "jump", "undecided"], nullable=True)
    """`none`: y does not depend on x as far as `p_value` tells. `trend`: it does, gradually. `jump`: two levels or a
    narrow logistic step describe it best, or a line does and a step improves on it. `undecided`: it depends on x, and
    too few models say how."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """Permutation test of the best change point; the search over all of them is paid for."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """The same with all tests of this table accounted for (Benjamini-Hochberg)."""
    p_value_either = dy.Float64(nullable=True, min=0, max=1)
    p_value_beyond_line = dy.Float64(nullable=True, min=0, max=1)
    """Of a line against a line with a step (permuted residuals, approximate)."""
    n_permutations = dy.UInt32()
    is_exact = dy.Bool()
    """Whether these are all orders of the models."""
    location = dy.Float64(nullable=True)
    """The change point, in units of x: the middle (of logarithms, for parameters) of the gap that it falls into."""
    location_low = dy.Float64(nullable=True)
    location_high = dy.Float64(nullable=True)
    """95 % of the resamples of the models (and of their sequences, where given); by percentiles, since a place between
    models moves in steps."""
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
    """With a model's strength: positive if y grows with parameters, or as the perplexity falls."""
    kendall_p_value = dy.Float64(nullable=True, min=0, max=1)
    level = dy.Float64()
    power = dy.Float64()
    detectable_jump_sd = dy.Float64(nullable=True)
    """The smallest jump there, in residual standard deviations, that this test finds so often at this level; null if
    so few models cannot show any."""
    detectable_jump = dy.Float64(nullable=True)
    """The same in units of y."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """The smallest p-value that so many models can give."""
    reason = dy.String(nullable=True)
    """Why there is no test."""

    @dy.rule()
    def test_or_reason(cls) -> pl.Expr:
        return pl.col("p_value").is_null() == pl.col("reason").is_not_null()


class TrendComparison(_Question):
    """`comparison/trends.parquet`: four descriptions of each figure along each axis."""

    model = dy.Enum(["constant", "line", "logistic_step", "change_point"], primary_key=True)
    n_parameters = dy.UInt32()
    """The variance of the residuals included."""
    rss = dy.Float64(nullable=True, min=0)
    aicc = dy.Float64(nullable=True)
    """Null if n is at most n_parameters + 1: it is not defined there, and the description not considered."""
    delta_aicc = dy.Float64(nullable=True, min=0)
    """Above the best."""
    weight = dy.Float64(nullable=True, min=0, max=1)
    """Akaike weight among those considered."""
    before = dy.Float64(nullable=True)
    """The level at the weak end."""
    after = dy.Float64(nullable=True)
    location = dy.Float64(nullable=True)
    """Where a step is, in units of x."""
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
    """With all tests of this table accounted for (Benjamini-Hochberg)."""
    is_exact = dy.Bool()
    """Whether the p-value counts all arrangements; else random ones."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """The smallest p-value that so many models can give."""
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


class FormingLayer(dy.Schema):
    """A layer in which a massive feature of the residual stream appears, or grows by the share that the rule asks."""

    layer = dy.UInt16(primary_key=True)
    feature = dy.UInt32(primary_key=True)
    peak = dy.Float64(min=0)
    """The largest |x| there; 0 stands for below the floor."""
    growth = dy.Float64(max=1)
    """What the layer adds to it, of the largest |x| that the feature has in any layer."""
    is_first = dy.Bool()
    """Whether it is the first layer in which the feature is massive."""


class SuperExpert(dy.Schema):
    """`super_experts.parquet`: every expert with a token, against the rule of arXiv 2507.23279."""

    layer = dy.UInt16(primary_key=True)
    expert = dy.UInt16(primary_key=True)
    kind = dy.Enum(["routed", "shared", "identity"])
    is_super = dy.Bool()
    """Whether `is_above` and `is_in_forming_layer`."""
    is_above = dy.Bool()
    """Whether the peak is above both `percentile_peak` and `share_peak`."""
    is_in_forming_layer = dy.Bool()
    is_massive_feature = dy.Bool()
    """Whether the peak is at a feature that forms a massive activation."""
    peak = dy.Float32(min=0)
    """The largest |x| of the expert's own output, before the gate."""
    peak_feature = dy.UInt32()
    peak_sequence = dy.UInt16()
    peak_position = dy.UInt16()
    n_tokens = dy.UInt64()
    percentile_peak = dy.Float64()
    """The percentile of all experts' peaks."""
    share_peak = dy.Float64()
    """The share of the largest peak."""
    n_experts = dy.UInt32()
    """Experts that the two are taken of."""


class OutlierRouting(dy.Schema):
    """`outlier_routing.parquet`: whether outlier tokens go to other experts than the rest, per layer.

    A pair is a token and an expert that works on it.
    """

    model = dy.String(primary_key=True)
    layer = dy.UInt16(primary_key=True)
    magnitude = dy.Float64(primary_key=True)
    n_experts = dy.UInt32()
    """With a token."""
    n_outlier_pairs = dy.UInt64()
    n_rest_pairs = dy.UInt64()
    n_sequences = dy.UInt32()
    """With tokens of both kinds: the units of the test."""
    chi_square = dy.Float64(nullable=True)
    """Of pairs over experts. No p-value belongs to it, since pairs are not independent."""
    cramers_v = dy.Float64(nullable=True, min=0, max=1)
    """The effect: 0 if outlier tokens go where the others go, 1 if no expert works on both."""
    load_distance = dy.Float64(nullable=True, min=0, max=1)
    """The same as the total variation distance between the two shares of the load."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """By flipping the signs of the sequences' differences."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """With all layers accounted for (Benjamini-Hochberg)."""
    is_exact = dy.Bool()
    reason = dy.String(nullable=True)
    """Why there is no test."""

    @dy.rule()
    def test_or_reason(cls) -> pl.Expr:
        return pl.col("p_value").is_null() == pl.col("reason").is_not_null()


class Verification(dy.Schema):
    """`verification.parquet`: a published figure each, and whether a recording shows it."""

    model = dy.String(primary_key=True)
    reference = dy.Enum(
        ["known_outliers", "published_maxima", "known_super_experts", "published_survey2025"], primary_key=True
    )
    claim = dy.String(primary_key=True)
    """What was published, in words."""
    source = dy.String(primary_key=True)
    verdict = dy.Enum(["reproduced", "not reproduced", "not comparable"])
    reason = dy.String(min_length=1)
    """What was found, or why it cannot be compared."""
    tap = dy.Enum(tap_enum.categories, nullable=True)
    layer = dy.UInt16(nullable=True)
    expert = dy.UInt16(nullable=True)
    feature = dy.UInt32(nullable=True)
    published = dy.Float64(nullable=True)
    """Magnitudes without their sign; percentages as such."""
    measured = dy.Float64(nullable=True)
