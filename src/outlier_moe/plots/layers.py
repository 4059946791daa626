"""One model, layer by layer: how large the largest activations are, how peaked, and which features they belong to."""

from __future__ import annotations

from typing import Literal

import altair as alt
import polars as pl

from outlier_moe.definitions.taps import TAPS, VIEWS, Tap, View
from outlier_moe.plots.marks import Layered, logarithmic, named, sized
from outlier_moe.tables.titles import SWEPT

MOST_FEATURES = 40
LAYER = "decoder layer"

SiteFigure = Literal["peak", "kurtosis"]
_COLUMNS = {"peak": "top_magnitude", "kurtosis": "kurtosis_of_feature_rms"}
_TITLES = {"peak": SWEPT["peak"].axis, "kurtosis": SWEPT["kurtosis_of_feature_rms"].axis}
TAP_DASHES: dict[Tap, list[int]] = {"attn_in": [1, 0], "mlp_in": [6, 3], "residual": [1, 0], "residual_rms": [2, 2]}


def layer_profile_chart(sites: pl.DataFrame, *, figure: SiteFigure, width: int = 460, height: int = 240) -> Layered:
    """One figure of every tap through the layers: the median of the sequences, and their range as a band.

    Args:
        sites: The table `schemas.Site`.
        figure: The largest |x|, or the kurtosis of the features' RMS (1: all features alike; d_model: one has all).
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    value = pl.col(_COLUMNS[figure]).cast(pl.Float64)
    rows = (
        sites.filter(value > 0)
        .group_by(pl.col("tap").cast(pl.String), "layer")
        .agg(y=value.median(), low=value.min(), high=value.max())
        .sort("tap", "layer")
        .rows(named=True)
    )
    taps: list[Tap] = [tap for tap in TAPS if any(row["tap"] == tap for row in rows)]
    colour, dashes = tap_colour(taps), tap_dashes(taps)
    base = alt.Chart(named(rows, "sites")).encode(
        x=alt.X("layer:Q", title=LAYER, scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, format="d")),
        color=colour,
    )
    y = logarithmic(alt.Y, "y", _TITLES[figure], [row[name] for row in rows for name in ("low", "high")])
    tooltip = [
        alt.Tooltip("tap:N"),
        alt.Tooltip("layer:Q"),
        *(alt.Tooltip(f"{name}:Q", format=",.4~r") for name in ("y", "low", "high")),
    ]
    band = base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", title=_TITLES[figure]), y2=alt.Y2("high:Q"))
    line = base.mark_line(strokeWidth=1.75, point=alt.OverlayMarkDef(size=22)).encode(
        y=y, strokeDash=dashes, tooltip=tooltip
    )
    return sized(alt.layer(band, line), width=width, height=height)


def tap_colour(taps: list[Tap]) -> alt.Color:
    """A colour for each tap."""
    return alt.Color("tap:N", title=None, scale=alt.Scale(domain=taps), legend=alt.Legend(symbolType="stroke"))


def tap_dashes(taps: list[Tap]) -> alt.StrokeDash:
    """A kind of line for each tap."""
    scale = alt.Scale(domain=taps, range=[TAP_DASHES[tap] for tap in taps])
    return alt.StrokeDash("tap:N", title=None, scale=scale, legend=alt.Legend(symbolType="stroke"))


def feature_heatmap_chart(
    peaks: pl.DataFrame, features: list[int], *, view: View, most: int = MOST_FEATURES, width: int = 460
) -> alt.Chart:
    """Features against layers: the largest |x| of each, the features in the order given.

    Args:
        peaks: The table of `peaks_by_layer`.
        features: The features to show, the most important first.
        view: The taps whose largest is shown.
        most: Features beyond so many are left out.
        width: Pixels between the axis' ends.
    """
    shown = features[:most]
    # All layers that were recorded, those in which none of the features reaches the floor as well.
    layers = sorted({int(layer) for layer in peaks["layer"].unique()})
    rows = (
        peaks.filter(pl.col("feature").is_in(shown), pl.col("tap").is_in(VIEWS[view]))
        .group_by("layer", "feature")
        .agg(pl.col("peak").max())
        .sort("layer", "feature")
        .rows(named=True)
    )
    chart = (
        alt.Chart(named(rows, "cells"))
        .mark_rect()
        .encode(
            x=alt.X(
                "layer:O",
                title=LAYER,
                scale=alt.Scale(domain=layers),
                axis=alt.Axis(grid=False, labelAngle=0, labelOverlap="greedy"),
            ),
            y=alt.Y("feature:O", title="feature", sort=shown, axis=alt.Axis(grid=False)),
            color=alt.Color(
                "peak:Q",
                title="largest |x|",
                scale=alt.Scale(type="log"),
                legend=alt.Legend(orient="right", titleOrient="top", format=",.3~r", tickCount=4),
            ),
            tooltip=[
                alt.Tooltip("feature:O"),
                alt.Tooltip("layer:O"),
                alt.Tooltip("peak:Q", title="largest |x|", format=",.4~r"),
            ],
        )
    )
    return sized(chart, width=width, height=max(60, 13 * len(shown)))
