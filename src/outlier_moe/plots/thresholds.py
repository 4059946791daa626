"""How many features are systematic at every threshold, exactly, from the counts at every edge of the ladder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.presets import FIRST_TOKENS, CountShape, FirstToken, Preset, shape_of
from outlier_moe.judging.edge_counts.coding import StoredCounts
from outlier_moe.judging.edge_counts.figures import counted_at
from outlier_moe.plots.labels import Lines
from outlier_moe.plots.marks import (
    MARK_AREA,
    Layered,
    kind_colour,
    kind_shape,
    label_layers,
    label_meta,
    label_rows,
    named,
    position,
    sized,
)
from outlier_moe.plots.quantities import SYSTEMATIC_FEATURES
from outlier_moe.plots.scales import PixelScale, domain_of

MAGNITUDE = "threshold |x| ≥"
DEAREST = 80.0
"""What the place of a curve's name may cost: one that crosses more than two curves is left out."""


def threshold_curve(counts: StoredCounts, preset: Preset, *, first_token: FirstToken = "included") -> pl.DataFrame:
    """The count of systematic features at every edge, down to the first that has none.

    Args:
        counts: A model's counts for the preset's shape.
        preset: The fractions to hold them against; its magnitude does not matter.
        first_token: Whether each sequence's first token counts.

    Returns:
        Columns `magnitude`, `n_systematic`, `n_pairs`.
    """
    edges = Ladder(floor=counts.floor).edges
    rows = []
    for edge in range(counts.n_edges + 1):
        counted = counted_at(
            counts,
            edge,
            layer_fraction=preset.layer_fraction,
            position_fraction=preset.position_fraction,
            first_token=first_token,
        )
        rows.append({"magnitude": float(edges[edge]), **counted._asdict()})
        if not counted.n_systematic:
            break
    return pl.DataFrame(rows, schema={"magnitude": pl.Float64, "n_systematic": pl.Int64, "n_pairs": pl.Int64})


Curves = Mapping[tuple[str, FirstToken], pl.DataFrame]
"""`threshold_curve` by preset and first token included or excluded."""


def threshold_curves(counts: Mapping[CountShape, StoredCounts], presets: Iterable[Preset]) -> Curves:
    """The curves of a model, of each preset that counts.

    Args:
        counts: Its counts at every edge.
        presets: The presets.
    """
    return {
        (preset.name, first_token): threshold_curve(counts[shape], preset, first_token=first_token)
        for preset in presets
        for first_token in FIRST_TOKENS
        if (shape := shape_of(preset)) is not None and shape in counts
    }


def all_curves_chart(
    curves: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, str],
    *,
    magnitude: float,
    width: int = 720,
    height: int = 420,
    is_placed: bool = True,
) -> Layered:
    """The curves of all models in one picture, each named where its last systematic feature ends.

    Args:
        curves: `threshold_curve` of each model.
        kinds: "dense" or "moe", of each model.
        magnitude: The study's own threshold.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
        is_placed: Whether names have their places; a page that gives them anew for its width (`usermeta`) needs none.
    """
    rows = [
        {"model": model, "kind": kinds[model], "x": row["magnitude"], "y": row["n_systematic"]}
        for model, curve in curves.items()
        for row in curve.filter(pl.col("n_systematic") > 0).iter_rows(named=True)
    ]
    # Rows go up the ladder: the last of a model is where its last systematic feature ends.
    ends = list({row["model"]: row for row in rows}.values())
    values = np.array([row["x"] for row in rows] or [magnitude], np.float64)
    across = PixelScale("log", (float(values.min()), float(values.max()) * 1.6), (0.0, float(width)))
    down = PixelScale(
        "symlog", domain_of(np.array([row["y"] for row in rows], np.float64), "symlog"), (float(height), 0.0)
    )
    x = position(alt.X, "x", MAGNITUDE, "log", across.domain)
    y = position(alt.Y, "y", SYSTEMATIC_FEATURES.title, "symlog", down.domain)
    hovered = alt.selection_point(fields=["model"], on="pointerover", empty=True, name="hovered")
    lines = (
        alt.Chart(named(rows, "curves"))
        .mark_line(strokeWidth=1.75, interpolate="linear")
        .encode(
            x=x,
            y=y,
            color=kind_colour(ends),
            detail=alt.Detail("model:N"),
            opacity=alt.condition(hovered, alt.value(0.8), alt.value(0.12)),
            tooltip=[
                alt.Tooltip("model:N"),
                alt.Tooltip("x:Q", title=MAGNITUDE),
                alt.Tooltip("y:Q", title=SYSTEMATIC_FEATURES.title),
            ],
        )
        .add_params(hovered)
    )
    marks = (
        alt.Chart(named(ends, "points"))
        .mark_point(size=MARK_AREA * 0.6, filled=True, opacity=1)
        .encode(x=x, y=y, color=kind_colour(ends), shape=kind_shape(ends), tooltip=[alt.Tooltip("model:N")])
    )
    labels = label_rows(ends, across, down, lines=_segments(rows, across, down), dearest=DEAREST) if is_placed else []
    chart = alt.layer(_own_threshold(magnitude, x), lines, marks, *label_layers(labels, x, y))
    return sized(chart, width=width, height=height, usermeta=label_meta(dearest=DEAREST))


def _segments(rows: list[dict[str, Any]], x: PixelScale, y: PixelScale) -> Lines:
    """The curves' pieces in pixels."""
    across = x.to_pixels(np.array([row["x"] for row in rows], np.float64))
    down = y.to_pixels(np.array([row["y"] for row in rows], np.float64))
    model = np.array([row["model"] for row in rows], np.str_)
    joined = np.flatnonzero(model[1:] == model[:-1])
    return np.stack([across[joined], down[joined], across[joined + 1], down[joined + 1]], axis=1)


def _own_threshold(magnitude: float, x: Any) -> alt.Chart:
    axis = x.copy(deep=True)
    return (
        alt.Chart(named([{"x": magnitude}], "threshold"))
        .mark_rule(strokeDash=[4, 3], strokeWidth=1.25)
        .encode(x=axis, tooltip=[alt.Tooltip("x:Q", title="the study's threshold")])
    )


def model_curves_chart(curves: Curves, *, magnitude: float, width: int = 460, height: int = 280) -> Layered:
    """One model's curves by every preset, with and without first tokens.

    Args:
        curves: What `threshold_curves` gave.
        magnitude: The study's own threshold.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    rows = [
        {"preset": preset, "first": first_token, "x": row["magnitude"], "y": row["n_systematic"]}
        for (preset, first_token), curve in curves.items()
        for row in curve.iter_rows(named=True)
    ]
    values = np.array([row["x"] for row in rows] or [magnitude, 2 * magnitude], np.float64)
    x = position(alt.X, "x", MAGNITUDE, "log", (float(values.min()), float(values.max()) * 1.05))
    heights = np.array([row["y"] for row in rows], np.float64)
    y = position(alt.Y, "y", SYSTEMATIC_FEATURES.title, "symlog", domain_of(heights, "symlog"))
    presets = list(dict.fromkeys(preset for preset, _ in curves))
    lines = (
        alt.Chart(named(rows, "curves"))
        .mark_line(strokeWidth=1.75, interpolate="linear", point=alt.OverlayMarkDef(size=18))
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "preset:N", title=None, scale=alt.Scale(domain=presets), legend=alt.Legend(symbolType="stroke")
            ),
            # Dashed where first tokens are left out.
            strokeDash=alt.StrokeDash(
                "first:N", scale=alt.Scale(domain=["included", "excluded"], range=[[1, 0], [4, 3]]), legend=None
            ),
            tooltip=[
                alt.Tooltip("preset:N"),
                alt.Tooltip("first:N"),
                alt.Tooltip("x:Q", title=MAGNITUDE),
                alt.Tooltip("y:Q", title="features"),
            ],
        )
    )
    return sized(alt.layer(_own_threshold(magnitude, x), lines), width=width, height=height)
