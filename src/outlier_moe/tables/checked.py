"""The tables of what single models are held against: rules for experts, and figures that others published."""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.tables.moe import EXPERT_KINDS
from outlier_moe.tables.schemas import tap_enum


class FormingLayer(dy.Schema):
    """A layer in which a massive feature of the residual stream appears, or grows by the share that the rule asks."""

    layer = dy.UInt16(primary_key=True)
    feature = dy.UInt32(primary_key=True)
    peak = dy.Float64(min=0)
    """The largest |x| there; 0 stands for below the floor."""
    growth = dy.Float64(max=1)
    """What the layer adds to the peak, as a share of the largest |x| that the feature has in any layer."""
    is_first = dy.Bool()
    """Whether it is the first layer in which the feature is massive."""


class SuperExpert(dy.Schema):
    """`super_experts.parquet`: every expert with a token, against the rule of arXiv 2507.23279."""

    layer = dy.UInt16(primary_key=True)
    expert = dy.UInt16(primary_key=True)
    kind = dy.Enum(EXPERT_KINDS)
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
    """The rule's percentile of all experts' peaks."""
    share_peak = dy.Float64()
    """The rule's share of the largest peak of all experts."""
    n_experts = dy.UInt32()
    """Experts that `percentile_peak` and `share_peak` are taken over."""


class OutlierRouting(dy.Schema):
    """`outlier_routing.parquet`: whether outlier tokens go to other experts than the rest, per layer.

    A pair is a token and an expert that works on it.
    """

    model = dy.String(primary_key=True)
    layer = dy.UInt16(primary_key=True)
    magnitude = dy.Float64(primary_key=True)
    n_experts = dy.UInt32()
    """Experts with a token."""
    n_outlier_pairs = dy.UInt64()
    n_rest_pairs = dy.UInt64()
    n_sequences = dy.UInt32()
    """Sequences with tokens of both kinds: the units of the test."""
    chi_square = dy.Float64(nullable=True)
    """Chi-square of pairs over experts, without a p-value, since pairs are not independent."""
    cramers_v = dy.Float64(nullable=True, min=0, max=1)
    """The effect: 0 if outlier tokens go where the others go, 1 if no expert works on both."""
    load_distance = dy.Float64(nullable=True, min=0, max=1)
    """Total variation distance between the loads of outlier tokens and of the others."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """p-value by flipping the signs of the sequences' differences."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """p-value that accounts for all layers (Benjamini-Hochberg)."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """Smallest p-value that the signs of so many sequences can give."""
    verdict = dy.Enum(["none", "too_few", "differs"], nullable=True)
    """By the q-value. `differs`: outlier tokens go to other experts. `none`: that is not seen, and could have been.
    `too_few`: so few sequences could not show it. Null without a test."""
    is_exact = dy.Bool()
    reason = dy.String(nullable=True)
    """Why there is no test."""

    @dy.rule()
    def test_or_reason(cls) -> pl.Expr:
        return pl.col("p_value").is_null() == pl.col("reason").is_not_null()


class ExpertRouting(dy.Schema):
    """`expert_routing.parquet`: how many of the outlier tokens each expert works on, and of the others.

    One row per expert with a token, whatever its kind: shared ones work on all.
    """

    model = dy.String(primary_key=True)
    layer = dy.UInt16(primary_key=True)
    expert = dy.UInt16(primary_key=True)
    kind = dy.Enum(EXPERT_KINDS)
    magnitude = dy.Float64()
    """The |x| at mlp_in from which a token is an outlier token."""
    outlier_share = dy.Float64(nullable=True, min=0)
    """The share of the layer's outlier tokens that the expert works on; null if there are none."""
    rest_share = dy.Float64(nullable=True, min=0)
    """The share of its other tokens; null if there are none."""
    outlier_lift = dy.Float64(nullable=True, min=0, allow_inf=True)
    """`outlier_share` over `rest_share`; infinite if the expert works on outlier tokens alone."""
    n_outlier_tokens = dy.UInt64()
    """Outlier tokens that the expert works on, of `n_layer_outlier_tokens`."""
    n_layer_outlier_tokens = dy.UInt64()
    n_tokens = dy.UInt64()
    """Tokens that the expert works on, of `n_layer_tokens`."""
    n_layer_tokens = dy.UInt64()


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
    """The published figure: magnitudes without their sign, percentages as such."""
    measured = dy.Float64(nullable=True)
