"""The tables of routers and experts: their columns, types and rules.

Rows are per sequence and hold sums, so that shards of a corpus are merged by concatenation and every figure over the
whole corpus, at any edge of the ladder, follows from them (`outlier_moe.judging.experts`).
"""

from __future__ import annotations

from typing import Literal, get_args

import dataframely as dy
import polars as pl

ExpertKind = Literal["routed", "shared", "identity"]
"""`routed`: chosen by the router. `shared`: every token goes through it. `identity`: chosen by the router, and gives
back what it reads (LongCat's zero-computation experts), so that its peaks are those of mlp_in."""

EXPERT_KINDS: tuple[ExpertKind, ...] = get_args(ExpertKind)
kind_enum = pl.Enum(EXPERT_KINDS)


class Expert(dy.Schema):
    """`outliers/experts.parquet`: one row per (layer, expert, sequence) with a token that the expert works on.

    A token counts for an expert if its gate there is not 0. A model that computes NaN has NaN among its gates.
    """

    layer = dy.UInt16(primary_key=True)
    expert = dy.UInt16(primary_key=True)
    sequence = dy.UInt16(primary_key=True)
    kind = dy.Enum(kind_enum.categories)
    n_tokens = dy.UInt16(min=1)
    gate_sum = dy.Float64(allow_nan=True)
    n_outlier_tokens = dy.List(dy.UInt16())
    """Tokens whose largest |x| at mlp_in reaches each edge of the ladder, from the floor to the highest one reached."""
    peak = dy.Float32(min=0)
    """Largest finite |x| of the expert's own output, before the gate; of several the first position, lowest feature."""
    peak_feature = dy.UInt32()
    """Feature of the peak; where experts work in a latent space, a feature of that space."""
    peak_position = dy.UInt16()
    peak_gate = dy.Float32(allow_nan=True)
    n_nonfinite = dy.UInt64()

    @dy.rule()
    def no_more_outlier_tokens_than_tokens(cls) -> pl.Expr:
        return pl.col("n_outlier_tokens").list.first().fill_null(0) <= pl.col("n_tokens")


class Router(dy.Schema):
    """`outliers/routers.parquet`: one row per (layer, sequence) of the layers that have a router.

    The load of an expert is the number of tokens that it works on. An expert without a token is dead.
    """

    layer = dy.UInt16(primary_key=True)
    sequence = dy.UInt16(primary_key=True)
    n_experts = dy.UInt16(min=1)
    n_choices = dy.UInt16(min=1)
    n_tokens = dy.UInt16()
    """Tokens that were sent to at least one expert."""
    n_dead = dy.UInt16()
    load_entropy = dy.Float64(min=0, nullable=True)
    load_cv = dy.Float64(min=0, nullable=True)
    top_gate_share_sum = dy.Float64(allow_nan=True)
    n_outlier_tokens = dy.List(dy.UInt16())
    """Tokens whose largest |x| at mlp_in reaches each edge of the ladder, from the floor to the highest one reached."""
    outlier_top_gate_share_sum = dy.List(dy.Float64(allow_nan=True))

    @dy.rule()
    def a_sum_for_every_count(cls) -> pl.Expr:
        return pl.col("n_outlier_tokens").list.len() == pl.col("outlier_top_gate_share_sum").list.len()


class ExpertSummary(dy.Schema):
    """What each expert of a layer does over the whole corpus, at one magnitude.

    `outlier_share` and `rest_share` are the shares of the layer's outlier tokens, and of its other tokens, that the
    expert works on, null if there are none; `outlier_lift` is the one over the other, infinite if the expert works on
    outlier tokens alone. The layer's tokens are those that were sent to an expert.
    """

    layer = dy.UInt16(primary_key=True)
    expert = dy.UInt16(primary_key=True)
    kind = dy.Enum(kind_enum.categories)
    n_tokens = dy.UInt64()
    mean_gate = dy.Float64(allow_nan=True)
    n_outlier_tokens = dy.UInt64()
    n_layer_tokens = dy.UInt64()
    n_layer_outlier_tokens = dy.UInt64()
    outlier_share = dy.Float64(min=0, nullable=True)
    rest_share = dy.Float64(min=0, nullable=True)
    outlier_lift = dy.Float64(min=0, nullable=True, allow_inf=True)
    peak = dy.Float32(min=0)
    peak_feature = dy.UInt32()
    peak_sequence = dy.UInt16()
    peak_position = dy.UInt16()
    peak_gate = dy.Float32(allow_nan=True)
    n_nonfinite = dy.UInt64()
