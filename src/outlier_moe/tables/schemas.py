"""Every table of the project: its columns, their types and the rules that hold between them.

A table is validated where it is written or read, and nowhere else.
"""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.definitions.taps import TAPS, VIEWS

tap_enum = pl.Enum(TAPS)
view_enum = pl.Enum(list(VIEWS))


class Token(dy.Schema):
    """`tokens.arrow`: the study's text as tokens, one row a token, ordered by sequence and position."""

    sequence = dy.UInt16(primary_key=True)
    position = dy.UInt16(primary_key=True)
    token = dy.UInt32()


class _Outlier(dy.Schema):
    layer = dy.UInt16()
    sequence = dy.UInt16()
    feature = dy.UInt32()
    peak = dy.Float32(min=0)
    peak_position = dy.UInt16()
    first_token_magnitude = dy.Float32(min=0)
    later_peak = dy.Float32(min=0)
    later_peak_position = dy.UInt16()
    n_positions = dy.List(dy.UInt16(), min_length=1)
    """Positions with |x| at or above each edge of the ladder, from the floor up to the peak's edge."""

    @dy.rule()
    def peak_is_the_larger_of_first_and_later(cls) -> pl.Expr:
        return pl.col("peak") == pl.max_horizontal("first_token_magnitude", "later_peak")


class LayerOutlier(_Outlier):
    """`outliers/layer_*.arrow`: one row per (tap, sequence, feature) whose peak reaches the floor."""

    tap = dy.Enum(tap_enum.categories)


class AnyLayerOutlier(_Outlier):
    """`outliers/any_layer.arrow`: the same per (view, sequence, feature) for the largest |x| over the view's sites.

    `layer` is the one in which the peak was seen first. `first_token_magnitude` and `later_peak` are 0 below the floor.
    """

    view = dy.Enum(view_enum.categories)


class Site(dy.Schema):
    """`outliers/sites.parquet`: the distribution of all values at one (tap, layer) of one sequence."""

    tap = dy.Enum(tap_enum.categories, primary_key=True)
    layer = dy.UInt16(primary_key=True)
    sequence = dy.UInt16(primary_key=True)
    rms = dy.Float64(min=0)
    median_magnitude = dy.Float32(min=0)
    top_magnitude = dy.Float32(min=0)
    max_median_ratio = dy.Float64(nullable=True)
    kurtosis_of_feature_rms = dy.Float64(nullable=True)
    excess_kurtosis = dy.Float64(nullable=True)
    n_nonfinite = dy.UInt64()
    n_positions = dy.UInt16()
    d_model = dy.UInt32()


class Peak(dy.Schema):
    """`outliers/peaks.parquet`: the features with the largest peaks of each site and sequence, largest first."""

    tap = dy.Enum(tap_enum.categories, primary_key=True)
    layer = dy.UInt16(primary_key=True)
    sequence = dy.UInt16(primary_key=True)
    rank = dy.UInt16(primary_key=True)
    position = dy.UInt16()
    feature = dy.UInt32()
    value = dy.Float32()
    token = dy.UInt32()
    text = dy.String()


class Sequence(dy.Schema):
    """`outliers/sequences.parquet`: one row a sequence. Its loss is the mean over n_tokens - 1 next tokens."""

    sequence = dy.UInt16(primary_key=True)
    n_tokens = dy.UInt16()
    loss_nats = dy.Float64(nullable=True)


first_token_enum = pl.Enum(["included", "excluded"])


class Systematic(dy.Schema):
    """`systematic.parquet`: one row per (preset, first_token, feature) that is affected anywhere.

    Where a preset judges each sequence alone there is one row per (feature, sequence); elsewhere `sequence` is null.
    Fractions run from 0 to 1.
    """

    preset = dy.String()
    first_token = dy.Enum(first_token_enum.categories)
    """Whether each sequence's first token counts."""
    feature = dy.UInt32()
    sequence = dy.UInt16(nullable=True)
    is_systematic = dy.Bool()
    layer_fraction = dy.Float64(min=0, max=1)
    """Affected layers (or sites, as the preset says) as a share of all."""
    position_fraction = dy.Float64(nullable=True, min=0, max=1)
    """Positions affected at any site of the view, as a share of all; null for massive activations."""
    position_fraction_per_site = dy.Float64(nullable=True, min=0, max=1)
    """Positions affected at one site, as a share of all: the mean over the affected sites."""
    n_values = dy.UInt64(nullable=True)
    """Outlier values of the feature over all positions and sites of the view; null where none are counted."""
    peak = dy.Float32(min=0)
    peak_tap = dy.Enum(tap_enum.categories)
    peak_layer = dy.UInt16()
    peak_sequence = dy.UInt16()
    peak_position = dy.UInt16()


class JudgedFeature(dy.Schema):
    """`comparison/features.parquet`: every systematic feature of every model.

    Where a feature's peak lies is in the model's own `systematic.parquet`.
    """

    preset = dy.String()
    first_token = dy.Enum(first_token_enum.categories)
    feature = dy.UInt32()
    sequence = dy.UInt16(nullable=True)
    layer_fraction = dy.Float64(min=0, max=1)
    position_fraction = dy.Float64(nullable=True, min=0, max=1)
    position_fraction_per_site = dy.Float64(nullable=True, min=0, max=1)
    n_values = dy.UInt64(nullable=True)
    peak = dy.Float32(min=0)


class ModelComparison(dy.Schema):
    """`comparison/models.parquet`: one row per (model, preset, first_token). Fractions are over systematic features."""

    model = dy.String(primary_key=True)
    preset = dy.String(primary_key=True)
    first_token = dy.Enum(first_token_enum.categories, primary_key=True)
    kind = dy.Enum(["dense", "moe"])
    family = dy.String()
    n_systematic = dy.UInt32()
    """Distinct features, never above d_model."""
    n_pairs = dy.UInt32(nullable=True)
    """(feature, sequence) pairs, where the preset judges each sequence alone."""
    d_model_share = dy.Float64(min=0, max=1)
    """Systematic features as a share of all features of the hidden state."""
    is_degenerate = dy.Bool()
    """Whether the preset marks at least 90 % of the model's features, and so says nothing of it."""
    layer_fraction_mean = dy.Float64(nullable=True, min=0, max=1)
    layer_fraction_median = dy.Float64(nullable=True, min=0, max=1)
    position_fraction_mean = dy.Float64(nullable=True, min=0, max=1)
    position_fraction_median = dy.Float64(nullable=True, min=0, max=1)
    position_fraction_per_site_mean = dy.Float64(nullable=True, min=0, max=1)
    position_fraction_per_site_median = dy.Float64(nullable=True, min=0, max=1)
    peak_median = dy.Float32(nullable=True)
    peak_largest = dy.Float32(nullable=True)
    n_values = dy.UInt64(nullable=True)
    """Outlier values of the systematic features, over all positions and sites."""
    kurtosis_of_feature_rms_mean = dy.Float64(nullable=True)
    """Kurtosis of feature RMS over the preset's view: the mean over its sites of each site's mean over the sequences.

    All kurtosis figures include first tokens, also where features are judged without them."""
    kurtosis_of_feature_rms_median = dy.Float64(nullable=True)
    excess_kurtosis_mean = dy.Float64(nullable=True)
    excess_kurtosis_median = dy.Float64(nullable=True)
    perplexity = dy.Float64(nullable=True)
    total_params_b = dy.Float64()
    active_params_b = dy.Float64()
    active_ratio = dy.Float64(min=0, max=1)
    """Active parameters as a share of all: 1 for a dense model."""
    embedding_free_params_b = dy.Float64(nullable=True, min=0)
    """Parameters of the loaded model in billions, without token embeddings and an output layer of its own."""
    n_experts = dy.UInt32(nullable=True)
    top_k = dy.UInt32(nullable=True)
    n_shared_experts = dy.UInt32(nullable=True)
    routing = dy.String(nullable=True)
    release_date = dy.Date(nullable=True)
    d_model = dy.UInt32()
    """Width of the hidden state: features of the widest site."""
    n_layers = dy.UInt32()
    n_sequences = dy.UInt32()
    n_tokens = dy.UInt64()
    corpus_sha256 = dy.String()
    corpus = dy.String(nullable=True)
    """Name of the text in the registry."""
    tokenizer_sha256 = dy.String(nullable=True)
    """SHA-256 of the tokenizer. Perplexities are per token: only models with the same tokenizer compare exactly."""
    floor = dy.Float64()
    n_nonfinite = dy.UInt64()
    """Activations that were NaN or infinite, over all sites; they are in no other figure."""


class Document(dy.Schema):
    """`corpora/{corpus}.parquet`: a fetched text, one row a document, in the order of its source."""

    document = dy.UInt32(primary_key=True)
    text = dy.String(min_length=1)
