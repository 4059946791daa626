"""Every table of the project: its columns, their types and the rules that hold between them.

A table is validated where it is written or read, and nowhere else.
"""

from __future__ import annotations

import dataframely as dy
import polars as pl

from outlier_moe.taps import TAPS, VIEWS

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

    @dy.rule()
    def peak_is_the_larger_of_first_and_later(cls) -> pl.Expr:
        return pl.col("peak") == pl.max_horizontal("first_token_magnitude", "later_peak")


class LayerOutlier(_Outlier):
    """`outliers/layer_*.arrow`: one row per (tap, sequence, feature) whose peak reaches the floor.

    `n_positions[k]` counts the positions with |x| >= the k-th edge from the floor; the list ends at the peak's edge.
    `later_peak` is the peak over all positions but the first.
    """

    tap = dy.Enum(tap_enum.categories)


class AnyLayerOutlier(_Outlier):
    """`outliers/any_layer.arrow`: the same per (view, sequence, feature) for the largest |x| over the view's sites.

    `layer` is the one in which the peak was seen first.
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
    """`outliers/sequences.parquet`: one row a sequence. `loss_nats`: mean next-token loss over its n_tokens - 1."""

    sequence = dy.UInt16(primary_key=True)
    n_tokens = dy.UInt16()
    loss_nats = dy.Float64(nullable=True)
