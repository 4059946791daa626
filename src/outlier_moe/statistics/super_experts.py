"""Super experts (arXiv 2507.23279): the few experts whose output makes the massive activations of a model.

An expert is super if its largest output is above the 99.5th percentile of all experts' and above a tenth of the
largest, in a layer where massive activations form. Those layers are taken from the residual stream: a massive feature
(preset `sun2024`) first appears there, or its largest |x| grows there by at least a tenth of the largest that it has
anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.rule import is_massive
from outlier_moe.tables.checked import FormingLayer, SuperExpert
from outlier_moe.tables.moe import ExpertKind
from outlier_moe.tables.recording import Recording

_PLACE = ["peak_feature", "sequence", "peak_position"]


@dataclass(frozen=True)
class SuperExpertRule:
    """The published rule, as a preset."""

    percentile: float = 99.5
    """Of all experts' peaks; a super expert lies above it."""
    share_of_largest: float = 0.1
    """Of the largest peak of all experts; a super expert lies above it."""
    kinds: tuple[ExpertKind, ...] = ("routed", "shared")
    """The experts looked at; identities give back what they read, and make nothing."""
    least_growth: float = 0.1
    """Of a massive feature's largest |x| over all layers: a layer that adds so much forms it."""
    massive: Preset = Preset("sun2024", "massive", "residual", 100.0, median_ratio=1000.0)
    """What makes a feature massive."""


class SuperExperts(NamedTuple):
    """The experts of a model against the rule."""

    experts: pl.DataFrame
    """`SuperExpert`: one row per expert with a token, largest peak first."""
    forming: pl.DataFrame
    """`FormingLayer`: the layers in which massive activations form, a row per feature."""
    reason: str | None
    """Why no expert can be super; None if some could."""


def forming_layers(recording: Recording, rule: SuperExpertRule | None = None) -> pl.DataFrame:
    """The layers in which massive activations form, with the features that do.

    A feature's |x| at a layer is the largest over all sequences, first tokens included; below the recording's floor it
    counts as 0.

    Returns:
        The table `FormingLayer`; empty if the residual stream was not recorded or nothing in it is massive.
    """
    rule = rule or SuperExpertRule()
    medians = recording.sites().lazy().select("tap", "layer", "sequence", "median_magnitude")
    massive = is_massive(pl.col("peak"), pl.col("median_magnitude"), rule.massive)
    by_layer = (
        recording.layer_outliers()
        .filter(pl.col("tap") == "residual")
        .join(medians, on=["tap", "layer", "sequence"], validate="m:1")
        .group_by("feature", "layer")
        .agg(pl.col("peak").max().cast(pl.Float64), is_massive=massive.any())
        .filter(pl.col("is_massive").any().over("feature"))
        .collect()
    )
    layers = pl.DataFrame({"layer": range(recording.run["n_layers"])})
    grid = by_layer.select("feature").unique().join(layers, how="cross")
    before = pl.col("peak").shift(1, fill_value=0.0).over("feature", order_by="layer")
    table = (
        grid.with_columns(pl.col("layer").cast(pl.UInt16))
        .join(by_layer, on=["feature", "layer"], how="left")
        .with_columns(pl.col("peak").fill_null(0.0), pl.col("is_massive").fill_null(False))
        .with_columns(growth=(pl.col("peak") - before) / pl.col("peak").max().over("feature"))
        .with_columns(
            is_first=pl.col("is_massive")
            & (pl.col("is_massive").cast(pl.UInt32).cum_sum().over("feature", order_by="layer") == 1)
        )
        .filter(pl.col("is_first") | (pl.col("growth") >= rule.least_growth))
        .sort("layer", "feature")
    )
    return FormingLayer.validate(table.select(FormingLayer.column_names()), cast=True)


def super_experts(experts: pl.DataFrame, forming: pl.DataFrame, rule: SuperExpertRule | None = None) -> SuperExperts:
    """Hold every expert against the rule.

    Args:
        experts: Rows of `tables.moe.Expert`. Experts without a token have none, and are not among those that the
            percentile is taken of.
        forming: The table `FormingLayer` of the same recording.
        rule: The rule.
    """
    rule = rule or SuperExpertRule()
    largest = (
        experts.filter(pl.col("kind").cast(pl.String).is_in(rule.kinds))
        .sort(["peak", "sequence"], descending=[True, False])
        .group_by("layer", "expert", "kind", maintain_order=True)
        .agg(pl.col("peak", *_PLACE).first(), pl.col("n_tokens").cast(pl.UInt64).sum())
        .rename({"sequence": "peak_sequence"})
    )
    if largest.is_empty():
        return SuperExperts(SuperExpert.create_empty(), forming, "no expert of the recording has a token")
    peaks = largest["peak"].cast(pl.Float64).to_numpy()
    percentile, share = float(np.percentile(peaks, rule.percentile)), rule.share_of_largest * float(peaks.max())
    above = (pl.col("peak") > percentile) & (pl.col("peak") > share)
    forms = pl.col("layer").is_in(forming["layer"].unique().to_list())
    table = largest.with_columns(
        is_super=above & forms,
        is_above=above,
        is_in_forming_layer=forms,
        is_massive_feature=pl.col("peak_feature").is_in(forming["feature"].unique().to_list()),
        percentile_peak=pl.lit(percentile),
        share_peak=pl.lit(share),
        n_experts=pl.lit(len(largest)),
    ).sort(["peak", "layer", "expert"], descending=[True, False, False])
    reason = None if len(forming) else "no massive activation in the residual stream, so that no layer forms any"
    return SuperExperts(SuperExpert.validate(table.select(SuperExpert.column_names()), cast=True), forming, reason)
