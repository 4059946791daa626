"""The tables of resampled figures: one row a figure, with the n behind it, and a reason where it is missing."""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.tables.schemas import first_token_enum
from outlier_moe.tables.titles import COMPARED

SEQUENCE_FIGURES = (
    "perplexity",
    "kurtosis_of_feature_rms_mean",
    "kurtosis_of_feature_rms_median",
    "excess_kurtosis_mean",
    "excess_kurtosis_median",
)
"""Figures that depend on the sequences and the view alone, and on no threshold."""

FIGURES = tuple(name for name, title in COMPARED.items() if title.is_resampled)
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
    """The figure of each resample; null where it does not exist. Empty for a single sequence."""
    leave_one_out = dy.List(dy.Float64(nullable=True))
    """The figure without each sequence in turn."""
    n_sequences = dy.UInt32()
    seed = dy.UInt64()
    corpus_sha256 = dy.String()
    text_sha256 = dy.String()
    """SHA-256 of the sequences' tokens: equal for two models if and only if they read the same tokens."""


class _Interval(dy.Schema):
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    figure = dy.Enum(figure_enum.categories, primary_key=True)
    estimate = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    standard_error = dy.Float64(nullable=True)
    share_below = dy.Float64(nullable=True, min=0, max=1)
    """Share of the resamples below the estimate; near 1 for figures pooled by union or maximum, which more sequences
    only raise."""
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
    """Whether these are all possible choices."""
    mean = dy.Float64(nullable=True)
    standard_deviation = dy.Float64(nullable=True)
    """Standard deviation over the choices; null for one choice. Choices overlap, so it falls to 0 at all sequences."""
    smallest = dy.Float64(nullable=True)
    largest = dy.Float64(nullable=True)
    reason = dy.String(nullable=True)


class LeftOut(dy.Schema):
    """`comparison/left_out.parquet`: the models that were left out of the comparison, and why."""

    model = dy.String(primary_key=True)
    reason = dy.String()
