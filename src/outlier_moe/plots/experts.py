"""An MoE model's experts: how the router loads them, and how large each one's own output gets."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from outlier_moe.plots.layers import LAYER
from outlier_moe.plots.marks import Layered, label_layers, label_meta, label_rows, named, position, sized
from outlier_moe.plots.scales import PixelScale, domain_of

MOST_NAMED = 8
MOST_MARKS = 1500
MOST_COLUMNS = 64


def expert_load_chart(experts: pl.DataFrame, *, width: int = 460, height: int = 260) -> alt.Chart:
    """The load of each layer's routed experts, busiest first, as a multiple of an equal share.

    Where there are more than 64 experts, neighbours in that order share a column and show their mean.

    Args:
        experts: The table `ExpertSummary`.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    routed = experts.filter(pl.col("kind").cast(pl.String) != "shared")
    load = pl.col("n_tokens").cast(pl.Float64)
    most = routed.group_by("layer").len()["len"].max() or 1
    wide = -(-int(most) // MOST_COLUMNS)  # type: ignore[arg-type]
    rows = (
        routed.with_columns(
            rank=(load.rank("ordinal", descending=True).over("layer").cast(pl.Int64) - 1) // wide * wide + 1,
            relative=load / load.mean().over("layer"),
        )
        .group_by("layer", "rank")
        .agg(
            pl.col("relative").mean(),
            pl.col("n_tokens", "n_outlier_tokens").sum(),
            experts=pl.col("expert").sort_by("relative", descending=True).cast(pl.String).str.join(", "),
        )
        .sort("layer", "rank")
        .rows(named=True)
    )
    chart = (
        alt.Chart(named(rows, "cells"))
        .mark_rect()
        .encode(
            x=alt.X("rank:O", title="expert, by load", axis=alt.Axis(grid=False, labelAngle=0, labelOverlap="greedy")),
            y=alt.Y("layer:O", title=LAYER, axis=alt.Axis(grid=False, labelOverlap="greedy")),
            color=alt.Color(
                "relative:Q",
                title="× equal share",
                scale=alt.Scale(type="symlog"),
                legend=alt.Legend(orient="right", titleOrient="top", format=".2~f", tickCount=4),
            ),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("experts:N"),
                alt.Tooltip("n_tokens:Q", title="tokens", format=","),
                alt.Tooltip("n_outlier_tokens:Q", title="of them with outliers", format=","),
                alt.Tooltip("relative:Q", title="of an equal share", format=".2f"),
            ],
        )
    )
    return sized(chart, width=width, height=height)


def expert_peak_chart(experts: pl.DataFrame, *, width: int = 460, height: int = 280) -> Layered:
    """The largest |x| of each expert's own output through the layers; super experts stand out and are named.

    Args:
        experts: The table `SuperExpert`; of those that are not super the 1500 with the largest peaks are shown.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    rows = [
        {
            **row,
            "model": f"L{row['layer']} E{row['expert']}",
            "what": "super expert" if row["is_super"] else "other expert",
            "x": float(row["layer"]),
            "y": float(row["peak"]),
        }
        for row in experts.filter(pl.col("peak") > 0)
        .select("layer", "expert", "peak", "peak_feature", "peak_position", "n_tokens", "is_super")
        .sort(["peak", "layer", "expert"], descending=[True, False, False])
        .iter_rows(named=True)
    ]
    found = [row for row in rows if row["is_super"]]
    layers = np.array([row["x"] for row in rows] or [0.0])
    across = PixelScale("linear", (float(layers.min()) - 0.7, float(layers.max()) + 0.7), (0.0, float(width)))
    peaks = np.array([row["y"] for row in rows], np.float64)
    down = PixelScale("log", domain_of(peaks, "log", room=0.06), (float(height), 0.0))
    x = position(alt.X, "x", LAYER, "linear", across.domain)
    # Of few layers Vega would label the room between them too.
    x = x.axis(tickMinStep=1, format="d", labelOverlap="greedy")
    y = position(alt.Y, "y", "largest |x| of its output", "log", down.domain)
    kinds = ["other expert", "super expert"]
    tooltip = [
        *(alt.Tooltip(f"{name}:Q") for name in ("layer", "expert")),
        alt.Tooltip("y:Q", title="largest |x|", format=",.4~r"),
        alt.Tooltip("peak_feature:Q", title="feature"),
        alt.Tooltip("peak_position:Q", title="position"),
        alt.Tooltip("n_tokens:Q", title="tokens", format=","),
    ]
    look = {
        "color": alt.Color("what:N", title=None, scale=alt.Scale(domain=kinds)),
        "shape": alt.Shape("what:N", title=None, scale=alt.Scale(domain=kinds)),
        "tooltip": tooltip,
    }
    others = [row for row in rows if not row["is_super"]][:MOST_MARKS]
    chart = alt.layer(
        alt.Chart(named(others, "others")).mark_point(size=20, filled=True, opacity=0.5).encode(x=x, y=y, **look),
        alt.Chart(named(found[:MOST_NAMED], "points")).mark_point(size=80, filled=True).encode(x=x, y=y, **look),
        *label_layers(label_rows(found[:MOST_NAMED], across, down), x, y),
    )
    return sized(chart, width=width, height=height, usermeta=label_meta())
