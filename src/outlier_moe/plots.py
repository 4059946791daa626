"""Pictures of the comparison, as PNG and as an interactive page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import altair as alt
import polars as pl

from outlier_moe.errors import StudyError, nearest

# Okabe and Ito's palette keeps its colours apart for all common kinds of colour vision; shape tells them apart as well.
KIND_COLOURS = {"dense": "#0072B2", "moe": "#D55E00"}
KIND_SHAPES = {"dense": "circle", "moe": "diamond"}


def outlier_chart(models: pl.DataFrame, *, preset: str) -> alt.HConcatChart:
    """How many outlier features each model has, and how many of the layers and positions they affect, by size.

    Args:
        models: The table `schemas.ModelComparison`.
        preset: The definition to show.

    Raises:
        StudyError: If the comparison has no such preset.
    """
    known = models["preset"].unique().to_list()
    if preset not in known:
        raise StudyError(
            "The comparison has no such preset.",
            key="compare_models.default_preset",
            got=preset,
            remedy=nearest(preset, known),
        )
    shown = models.filter(preset=preset).with_columns(
        layer_percent=100 * pl.col("layer_fraction_mean"), position_percent=100 * pl.col("position_fraction_mean")
    )
    panels = [
        _panel(shown, "n_systematic", "systematic features"),
        _panel(shown, "layer_percent", "mean layers affected (%)"),
        _panel(shown, "position_percent", "mean positions affected (%)"),
    ]
    text = f"preset {preset}; one model a mark; filled: all tokens, hollow: without each sequence's first token"
    return (
        alt.hconcat(*panels, title=alt.TitleParams("Outlier features", subtitle=text))
        .configure_axis(grid=False)
        .configure_view(stroke=None)
    )


def _panel(shown: pl.DataFrame, column: str, title: str) -> alt.LayerChart | alt.FacetChart:
    kinds = list(KIND_COLOURS)
    base = alt.Chart(shown).encode(
        x=alt.X("total_params_b:Q", title="parameters (billions)", scale=alt.Scale(type="log", padding=30)),
        y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=True)),
        color=alt.Color("kind:N", title="kind", scale=alt.Scale(domain=kinds, range=list(KIND_COLOURS.values()))),
        shape=alt.Shape("kind:N", title="kind", scale=alt.Scale(domain=kinds, range=list(KIND_SHAPES.values()))),
        tooltip=["model", "first_token", column, "perplexity", "peak_largest", "d_model", "n_tokens"],
    )
    filled = alt.FillOpacity(
        "first_token:N", scale=alt.Scale(domain=["included", "excluded"], range=[1, 0]), legend=None
    )
    points = base.mark_point(size=90, filled=False).encode(fillOpacity=filled, fill=alt.Fill("kind:N", legend=None))
    names = (
        base.transform_filter("datum.first_token == 'included'")
        .mark_text(dy=-12, fontSize=11)
        .encode(text="model:N", shape=alt.value("circle"))
    )
    return alt.layer(points, names).properties(width=240, height=240)


def save_chart(chart: alt.TopLevelMixin, paths: Mapping[str, str]) -> None:
    """Write a chart to `png` (twice the pixels of a screen) and to `html` (one file that opens offline).

    Args:
        chart: The chart.
        paths: Where to, by kind.
    """
    chart.save(Path(paths["png"]), format="png", ppi=144)
    chart.save(Path(paths["html"]), format="html", inline=True)
