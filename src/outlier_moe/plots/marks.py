"""The marks that pictures of several models share: a mark a model, its interval, and its name where there is room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import altair as alt
import numpy as np

from outlier_moe.plots.labels import Lines, place_labels
from outlier_moe.plots.scales import PixelScale, ScaleKind, domain_of, ticks_of
from outlier_moe.plots.theme import LABEL_SIZE

Chart = TypeVar("Chart", bound=alt.TopLevelMixin)
Layered = alt.LayerChart | alt.FacetChart
"""What `alt.layer` gives."""
KINDS = ["dense", "moe"]
KIND_NAMES = "datum.label == 'moe' ? 'MoE' : datum.label"
MARK_AREA = 80
MARK_RADIUS = 5.0
Y_EXTENT = 42
"""Pixels that the labels of a vertical axis take."""


def named(rows: list[dict[str, Any]], name: str) -> alt.InlineData:
    """Rows as data that a page can find by name."""
    # As text, which altair does not take apart and check row by row.
    return alt.InlineData(values=json.dumps(rows), name=name, format=alt.JsonDataFormat(type="json"))


def sized(chart: Chart, **properties: Any) -> Chart:
    """A chart with its width, height and the like: `properties`, without a copy of everything in it.

    Args:
        chart: A chart that nothing else holds.
        properties: Named as in Vega-Lite.
    """
    for name, value in properties.items():
        setattr(chart, name, value)
    return chart


def kind_colour(rows: Sequence[Mapping[str, Any]]) -> alt.Color:
    """Blue for dense, vermilion for MoE: the first two colours of the theme; the legend has the kinds of the rows."""
    return alt.Color("kind:N", title=None, scale=alt.Scale(domain=KINDS), legend=_kind_legend(rows))


def kind_shape(rows: Sequence[Mapping[str, Any]]) -> alt.Shape:
    """A circle for dense, a diamond for MoE."""
    return alt.Shape("kind:N", title=None, scale=alt.Scale(domain=KINDS), legend=_kind_legend(rows))


def _kind_legend(rows: Sequence[Mapping[str, Any]]) -> alt.Legend:
    there = {row["kind"] for row in rows}
    shown: dict[str, Any] = {"values": list(there)} if len(there) == 1 else {}
    return alt.Legend(labelExpr=KIND_NAMES, **shown)


def logarithmic(channel: type[alt.X] | type[alt.Y], field: str, title: str, values: Sequence[float | int]) -> Any:
    """A logarithmic axis that holds some values."""
    domain = domain_of(np.array(values, np.float64), "log", room=0.03)
    axis = alt.Axis(values=ticks_of("log", domain) or [], format=",.3~r")
    return channel(f"{field}:Q", title=title, scale=alt.Scale(type="log", domain=list(domain), nice=False), axis=axis)


def position(
    channel: type[alt.X] | type[alt.Y], field: str, title: str | None, kind: ScaleKind, domain: tuple[float, float]
) -> Any:
    """An axis whose ends are known, so that names can be placed on it."""
    within = ticks_of(kind, domain)
    # Vega-Lite would let it begin at 0 whatever its ends.
    zero: dict[str, Any] = {"zero": False} if kind == "symlog" and domain[0] > 0 else {}
    scale = alt.Scale(type=kind, domain=list(domain), nice=False, **zero)
    # One extent for all, so that a page knows how wide the rest is.
    extent: dict[str, Any] = {"minExtent": Y_EXTENT, "maxExtent": Y_EXTENT} if channel is alt.Y else {}
    values: dict[str, Any] = {} if within is None else {"values": within}
    axis = alt.Axis(**values, **extent, format=",.3~r", labelOverlap="greedy", labelSeparation=8)
    return channel(f"{field}:Q", title=title, scale=scale, axis=axis)


def label_rows(
    rows: list[dict[str, Any]],
    x: PixelScale,
    y: PixelScale,
    *,
    also: list[dict[str, Any]] | None = None,
    lines: Lines | None = None,
    dearest: float = np.inf,
) -> list[dict[str, Any]]:
    """The rows whose names have a place, with that place in the axes' own values.

    Args:
        rows: A row a mark, with `x`, `y`, its `model` and, if it has an interval, `low` and `high`.
        x: The horizontal axis.
        y: The vertical axis; its first pixel is the picture's height.
        also: Marks without a name, to be kept clear.
        lines: Lines in pixels that names better not cross, beside the intervals' bars.
        dearest: What a name's place may cost.
    """
    if not rows:
        return []
    marks = [*rows, *(also or [])]
    across = x.to_pixels(np.array([row["x"] for row in marks], np.float64))
    down = y.to_pixels(np.array([row["y"] for row in marks], np.float64))
    names = [row.get("label", row["model"]) if k < len(rows) else "" for k, row in enumerate(marks)]
    bars = [
        np.insert(y.to_pixels(np.array([row["low"], row["high"]], np.float64)), [0, 1], at)
        for at, row in zip(across, rows, strict=False)
        if row.get("low") is not None
    ]
    places = place_labels(
        across,
        down,
        names,
        width=x.pixels[1],
        height=y.pixels[0],
        bars=np.concatenate([np.array(bars).reshape(-1, 4), np.empty((0, 4)) if lines is None else lines]),
        size=LABEL_SIZE,
        radius=MARK_RADIUS,
        dearest=dearest,
    )
    return [
        {
            "name": text,
            "kind": row.get("kind"),
            "x": x.to_value(place.x),
            "y": y.to_value(place.y),
            "from_x": row["x"],
            "from_y": row["y"],
            "to_x": x.to_value(place.leader_x),
            "to_y": y.to_value(place.leader_y),
            "has_leader": place.has_leader,
        }
        for row, text, place in zip(marks, names, places, strict=True)
        if place is not None
    ]


def label_layers(rows: list[dict[str, Any]], x: Any, y: Any, *, prefix: str = "") -> list[alt.Chart]:
    """The names, and lines to those that stand apart from their mark."""
    data = named(rows, f"{prefix}labels")
    lines = (
        alt.Chart(data)
        .transform_filter("datum.has_leader")
        .mark_rule(strokeWidth=0.75, opacity=0.9, aria=False)
        .encode(x=_field(x, "from_x"), y=_field(y, "from_y"), x2=alt.X2("to_x:Q"), y2=alt.Y2("to_y:Q"))
    )
    names = (
        alt.Chart(data)
        .mark_text(align="center", baseline="middle", fontSize=LABEL_SIZE, clip=False, description="label")
        .encode(x=_field(x, "x"), y=_field(y, "y"), text=alt.Text("name:N"))
    )
    return [lines, names]


def _field(channel: Any, field: str) -> Any:
    copied = channel.copy(deep=True)
    copied.shorthand = f"{field}:Q"
    return copied


def label_meta(*, dearest: float | None = None) -> dict[str, Any]:
    """What a page needs in order to place the names anew where it draws the picture in another width."""
    rules = {"size": LABEL_SIZE, "radius": MARK_RADIUS}
    return {"labels": rules if dearest is None else {**rules, "dearest": dearest}}
