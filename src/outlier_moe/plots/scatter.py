"""Every model as a mark: its outlier features against its size or its perplexity, with confidence intervals."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl
from jaxtyping import Float64

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
from outlier_moe.plots.quantities import FRACTIONS, PERPLEXITY, SIZES, SYSTEMATIC_FEATURES, Quantity
from outlier_moe.plots.scales import PixelScale, domain_of

WIDTH, HEIGHT = 460, 320
_AFFECTED = "affected, mean over systematic features (%)"


def scatter_chart(
    models: pl.DataFrame,
    *,
    x: Quantity,
    y: Quantity,
    intervals: pl.DataFrame | None = None,
    without_first: pl.DataFrame | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    prefix: str = "",
    is_placed: bool = True,
) -> Layered:
    """One figure of every model against another.

    Args:
        models: Rows of `schemas.ModelComparison`, one a model. Those that lack either figure are left out.
        x: The horizontal axis.
        y: The vertical axis.
        intervals: Rows of `FigureInterval` for the same preset; those of `y` are drawn.
        without_first: The same models without each sequence's first token, as hollow marks tied to the others.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
        prefix: Of the names of its data, where it is one of several in a picture.
        is_placed: Whether names have their places; a page that gives them anew for its width (`usermeta`) needs none.
    """
    rows = _rows(models, x, y, intervals)
    hollow = [] if without_first is None else _tied(rows, _rows(without_first, x, y, None))
    across = PixelScale(x.scale, domain_of(_values(rows, "x"), x.scale), (0.0, float(width)))
    down = PixelScale(y.scale, _ends(_values([*rows, *hollow], "y", "low", "high"), y), (float(height), 0.0))
    x_axis = position(alt.X, "x", x.title, x.scale, across.domain)
    y_axis = position(alt.Y, "y", y.title, y.scale, down.domain)
    base = alt.Chart(named(rows, f"{prefix}points")).encode(x=x_axis, y=y_axis)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, opacity=0.65)
    points = base.mark_point(size=MARK_AREA, filled=True, opacity=0.95)
    names = label_rows(rows, across, down, also=hollow) if is_placed else []
    chart = alt.layer(
        bars.encode(y=alt.Y("low:Q", title=y.title), y2=alt.Y2("high:Q"), color=kind_colour(rows)),
        *(_hollow_layers(hollow, rows, x_axis, y_axis, prefix) if hollow else []),
        points.encode(color=kind_colour(rows), shape=kind_shape(rows), tooltip=_tooltip(x, y)),
        *label_layers(names, x_axis, y_axis, prefix=prefix),
    )
    return sized(
        chart,
        width=width,
        height=height,
        **({} if prefix else {"usermeta": label_meta()}),
        **({} if rows else {"title": f"No model has both {x.column} and {y.column}"}),
    )


def _tied(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The marks without first tokens, where they lie elsewhere, each with the height of the model's other mark."""
    height = {row["model"]: row["y"] for row in rows}
    return [
        {**row, "tie": height[row["model"]]}
        for row in others
        if row["model"] in height and row["y"] != height[row["model"]]
    ]


def _hollow_layers(
    hollow: list[dict[str, Any]], rows: list[dict[str, Any]], x: Any, y: Any, prefix: str
) -> list[alt.Chart]:
    base = alt.Chart(named(hollow, f"{prefix}hollow")).encode(x=x, y=y, color=kind_colour(rows))
    ties = base.mark_rule(opacity=0.45, strokeDash=[2, 2], aria=False).encode(y2=alt.Y2("tie:Q"))
    marks = base.mark_point(size=MARK_AREA, filled=False, strokeWidth=1.5)
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("y:Q", title="without first tokens", format=",.4~r")]
    return [ties, marks.encode(shape=kind_shape(rows), tooltip=tooltip)]


def _rows(models: pl.DataFrame, x: Quantity, y: Quantity, intervals: pl.DataFrame | None) -> list[dict[str, Any]]:
    shown = models.select(
        "model",
        "kind",
        "family",
        x=pl.col(x.column).cast(pl.Float64) * (100 if x.is_fraction else 1),
        y=pl.col(y.column).cast(pl.Float64) * (100 if y.is_fraction else 1),
    ).drop_nulls(["x", "y"])
    if intervals is None:
        return shown.with_columns(low=pl.lit(None), high=pl.lit(None)).rows(named=True)
    factor = 100 if y.is_fraction else 1
    bounds = intervals.filter(pl.col("figure").cast(pl.String) == y.column).select(
        "model", pl.col("low", "high") * factor
    )
    return shown.join(bounds, on="model", how="left", maintain_order="left").rows(named=True)


def _ends(values: Float64[np.ndarray, " _n"], quantity: Quantity) -> tuple[float, float]:
    if not quantity.is_fraction:
        return domain_of(values, quantity.scale)
    low, high = domain_of(values, quantity.scale)
    return low, min(high, 105.0)


def _values(rows: list[dict[str, Any]], *columns: str) -> Float64[np.ndarray, " _n"]:
    return np.array([row[name] for row in rows for name in columns if row.get(name) is not None], np.float64)


def _tooltip(x: Quantity, y: Quantity) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("model:N"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("family:N"),
        alt.Tooltip("x:Q", title=x.title, format=",.4~r"),
        alt.Tooltip("y:Q", title=y.title, format=",.4~r"),
        alt.Tooltip("low:Q", title="from", format=",.4~r"),
        alt.Tooltip("high:Q", title="to", format=",.4~r"),
    ]


def study_charts(
    models: pl.DataFrame, *, intervals: pl.DataFrame | None = None, is_placed: bool = True
) -> dict[str, Layered]:
    """The eight pictures of the study: total or active parameters x layers or positions x mean or median.

    Args:
        models: Rows of `schemas.ModelComparison` of one preset, one a model.
        intervals: Rows of `FigureInterval` of the same preset.
        is_placed: Whether names have their places; a page that gives them anew for its width (`usermeta`) needs none.
    """
    return {
        f"{size}-{fraction}": scatter_chart(
            models, x=SIZES[size], y=FRACTIONS[fraction], intervals=intervals, is_placed=is_placed
        )
        for size in SIZES
        for fraction in FRACTIONS
    }


def perplexity_charts(
    models: pl.DataFrame, *, intervals: pl.DataFrame | None = None, is_placed: bool = True
) -> dict[str, Layered]:
    """The same against perplexity, of the models that have one; the arguments are those of `study_charts`."""
    quantities = {"count": SYSTEMATIC_FEATURES, **FRACTIONS}
    return {
        f"perplexity-{name}": scatter_chart(models, x=PERPLEXITY, y=y, intervals=intervals, is_placed=is_placed)
        for name, y in quantities.items()
    }


def dual_chart(
    models: pl.DataFrame,
    *,
    size: str,
    intervals: pl.DataFrame | None = None,
    width: int = 620,
    height: int = 360,
    is_placed: bool = True,
) -> Layered:
    """Layers and positions affected (means) against size in one picture, as in the paper's figure 3.

    Args:
        models: Rows of `schemas.ModelComparison` of one preset, one a model.
        size: "total" or "active" parameters.
        intervals: Rows of `FigureInterval` of the same preset; wide bars, so that they stand out from the lines that
            tie a model's two marks.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
        is_placed: Whether names have their places; a page that gives them anew for its width (`usermeta`) needs none.
    """
    x = SIZES[size]
    pairs = [_rows(models, x, FRACTIONS[of], intervals) for of in ("layers-mean", "positions-mean")]
    # Each model is named once, beside its layers.
    rows = [{**row, "of": "layers"} for row in pairs[0]]
    rows += [{**row, "of": "positions", "label": ""} for row in pairs[1]]
    ties = [{"x": a["x"], "y": a["y"], "y2": b["y"], "kind": a["kind"]} for a, b in zip(*pairs, strict=True)]
    across = PixelScale(x.scale, domain_of(_values(rows, "x"), x.scale), (0.0, float(width)))
    down = PixelScale("linear", (0.0, 105.0), (float(height), 0.0))
    x_axis = position(alt.X, "x", x.title, x.scale, across.domain)
    y_axis = position(alt.Y, "y", _AFFECTED, "linear", down.domain)
    labels = label_layers(label_rows(rows, across, down) if is_placed else [], x_axis, y_axis)
    chart = alt.layer(*_dual_layers(rows, ties, x_axis, y_axis), *labels)
    return sized(chart, width=width, height=height, usermeta=label_meta())


def _dual_layers(rows: list[dict[str, Any]], ties: list[dict[str, Any]], x: Any, y: Any) -> list[alt.Chart]:
    """Ties between a model's two marks, intervals, filled marks for layers and hollow ones for positions."""
    tie = alt.Chart(named(ties, "ties")).mark_rule(opacity=0.4, aria=False)
    base = alt.Chart(named(rows, "points"))
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=5, opacity=0.35)
    marks = base.encode(
        x=x,
        y=y,
        color=kind_colour(rows),
        shape=kind_shape(rows),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("kind:N"),
            alt.Tooltip("of:N", title="affected"),
            alt.Tooltip("y:Q", format=".1f"),
            alt.Tooltip("low:Q", title="from", format=".1f"),
            alt.Tooltip("high:Q", title="to", format=".1f"),
        ],
    )
    return [
        tie.encode(x=x, y=y, y2=alt.Y2("y2:Q"), color=kind_colour(rows)),
        bars.encode(x=x, y=alt.Y("low:Q", title=_AFFECTED), y2=alt.Y2("high:Q"), color=kind_colour(rows)),
        marks.transform_filter("datum.of == 'layers'").mark_point(size=MARK_AREA, filled=True, opacity=0.95),
        marks.transform_filter("datum.of == 'positions'").mark_point(size=MARK_AREA, filled=False, strokeWidth=1.75),
    ]
