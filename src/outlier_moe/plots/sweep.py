"""Optimisers over scales: performance, ranks, sparsity and outliers against size, and all of them over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from outlier_moe.plots.marks import Layered, named, position, sized
from outlier_moe.plots.scales import ScaleKind, domain_of
from outlier_moe.plots.sweep_panels import COUNTS, DYNAMICS, OPTIMIZERS, PANELS, axis_kind
from outlier_moe.tables.titles import SWEPT

START_GREY = "#87909c"
"""Between the colours of both themes."""
CHOSEN = "chosen_scale"
"""The parameter that says whose steps are shown."""
_HEIGHTS = ("y", "low", "high", "start")
"""Columns that the marks of a panel have their heights of, all of which it holds."""
_LAST = "last"
"""That of runs that diverged: what lies beyond the others is drawn at the panel's edge."""
_NUMBER = ",.4~r"

_AXES: Mapping[ScaleKind, str] = {"linear": "", "log": ", log axis", "symlog": ", log axis beyond 1"}

Row = dict[str, Any]


def sweep_charts(*, figures: pl.DataFrame, dynamics: pl.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """The pictures of a sweep.

    Args:
        figures: The table `figures` of `scale_sweep.summary.SweepTables`.
        dynamics: The table `dynamics` of the same.
    """
    charts: dict[str, alt.TopLevelMixin] = {
        name: size_chart(figures, panels, name=name) for name, panels in PANELS.items()
    }
    diverged = figures.filter("is_diverged").select("scale", "optimizer", "seed").unique()
    return charts | {"dynamics": dynamics_chart(dynamics, diverged=diverged)}


def size_chart(
    figures: pl.DataFrame, panels: Sequence[str], *, name: str, width: int = 240, height: int = 170
) -> alt.ConcatChart:
    """Figures against the number of parameters: the mean of the seeds with their range, at the end and at matched loss.

    A grey bar is the mean at initialisation. Runs that diverged have a cross of their own, at the last checkpoint whose
    loss was a number.

    Args:
        figures: The table of figures.
        panels: Those to show.
        name: What the page finds the rows by.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    shown = figures.filter(pl.col("figure").is_in(panels), pl.col("value").is_not_null())
    rows = [*_at_moments(shown), *_at_start(shown)]
    layers = _size_layers(rows, _colours(figures))
    there = {row["figure"] for row in rows}
    charts = [_panel(figure, rows, layers, width, height) for figure in panels if figure in there]
    lines = [
        f"filled, solid: at the end; hollow, dashed: at matched training loss; {_of_seeds(rows, 'bars')}",
        f"grey: at initialisation, the mean of all runs{_of_diverged(rows, 'crosses')}",
    ]
    return sized(_beside(charts, named(rows, name)), title=_notes(lines))


def _at_moments(shown: pl.DataFrame) -> list[Row]:
    return (
        shown.filter(pl.col("moment") != "start")
        .filter((pl.col("moment") == "end") | ~pl.col("is_diverged"))
        .group_by("figure", "moment", "optimizer", "scale", "n_parameters", "is_diverged")
        .agg(y=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max(), n_seeds=pl.len())
        # Each kind of mark has columns of its own: filters in every layer are more than Vega-Lite can make simpler.
        .with_columns(last=pl.when("is_diverged").then("y"))
        .with_columns(pl.when(~pl.col("is_diverged")).then(pl.col("y", "low", "high")))
        .sort("figure", "moment", "optimizer", "n_parameters", "is_diverged")
        .to_dicts()
    )


def _at_start(shown: pl.DataFrame) -> list[Row]:
    """The figures at initialisation, which no optimiser has touched."""
    return (
        shown.filter(moment="start")
        .group_by("figure", "moment", "scale", "n_parameters")
        .agg(start=pl.col("value").mean())
        .sort("figure", "n_parameters")
        .to_dicts()
    )


def _size_layers(rows: Sequence[Row], colours: alt.Scale) -> list[tuple[str, alt.Chart]]:
    """The marks of a panel against size, each with the column of its heights, whose axis comes with the panel."""
    x = alt.X(
        "n_parameters:Q",
        title="parameters",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format=".2~s", values=sorted({row["n_parameters"] for row in rows}), labelOverlap=True),
    )
    base = alt.Chart().encode(x=x, color=alt.Color("optimizer:N", title=None, scale=colours))
    whose = ["optimizer:N", "scale:N", "moment:N"]
    tooltip = [*whose, *_tooltip()]
    dashes = alt.StrokeDash("moment:N", scale=alt.Scale(domain=["end", "matched"]), legend=None)
    filling = alt.condition("datum.moment === 'matched'", alt.value(0), alt.value(1))
    at_start = [alt.Tooltip("scale:N"), alt.Tooltip("start:Q", format=_NUMBER, title="at initialisation")]
    last = alt.Tooltip("last:Q", format=_NUMBER, title="last measured of runs that diverged")
    start = alt.Chart().mark_point(shape="stroke", size=420, strokeWidth=2.5, color=START_GREY, opacity=0.9)
    bar = base.mark_rule(strokeWidth=1, opacity=0.7).encode(y2="high:Q", detail="moment:N")
    # Or a run that diverged, which has no place on its line, would cut the line of those that did not.
    line = base.mark_line(strokeWidth=1.5).encode(strokeDash=dashes, detail="is_diverged:N")
    point = base.mark_point(size=26, strokeWidth=1.3, opacity=1).encode(
        fill=alt.Fill("optimizer:N", title=None, scale=colours), fillOpacity=filling, tooltip=tooltip
    )
    # The last that was measured of runs that diverged.
    cross = base.mark_point(shape="cross", angle=45, size=60, filled=True).encode(tooltip=[*whose, last])
    return [("start", start.encode(x=x, tooltip=at_start)), ("low", bar), ("y", line), ("y", point), (_LAST, cross)]


def dynamics_chart(
    dynamics: pl.DataFrame, *, diverged: pl.DataFrame | None = None, width: int = 240, height: int = 150
) -> alt.ConcatChart:
    """Figures over the steps at one scale, the largest unless a reader of the page chooses another.

    Lines are means of the seeds, bands are from the lowest to the highest, dotted lines are runs that diverged.

    Args:
        dynamics: The table of dynamics.
        diverged: The scale, optimizer and seed of runs that diverged, which are in no mean.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    shown = [name for name in DYNAMICS if name in dynamics.columns and dynamics[name].null_count() < len(dynamics)]
    rows = _over_steps(dynamics, shown, diverged)
    sizes = dict(dynamics.select("scale", "n_parameters").unique().sort("n_parameters").rows())
    scales = list(sizes)
    base = alt.Chart().encode(
        # Checkpoints are the denser the earlier, step 0 among them.
        x=_steps(rows),
        color=alt.Color("optimizer:N", title=None, scale=_colours(dynamics)),
    )
    if len(scales) > 1:
        base = base.transform_filter(f"datum.scale === {CHOSEN}")
    tooltip = ["optimizer:N", "scale:N", "step:Q", *_tooltip()]
    of_run = ["optimizer:N", "scale:N", "seed:Q", "step:Q", alt.Tooltip("last:Q", format=_NUMBER, title="diverged")]
    layers = [
        ("low", base.mark_area(opacity=0.18).encode(y2="high:Q")),
        ("y", base.mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=20)).encode(tooltip=tooltip)),
    ]
    if any(row[_LAST] is not None for row in rows):
        dotted = base.mark_line(strokeWidth=1.2, strokeDash=[1.5, 3], point=alt.OverlayMarkDef(size=14))
        layers.append((_LAST, dotted.encode(detail="seed:N", tooltip=of_run)))
    charts = [_panel(figure, rows, layers, width, height) for figure in shown]
    chart = _beside(charts, named(rows, "dynamics"))
    return _choosable(chart, scales, sizes, _of_seeds(rows, "bands") + _of_diverged(rows, "dotted"))


def _choosable(chart: alt.ConcatChart, scales: list[str], sizes: Mapping[str, int], what: str) -> alt.ConcatChart:
    """The steps of one scale, which the page lets its reader choose."""
    if len(scales) < 2:
        return sized(chart, title=_notes([f"scale {name}: {sizes[name]:,} parameters; {what}" for name in scales]))
    # The name of a binding is what the page writes beside the choice.
    bound = alt.binding_select(options=scales, name="scale ")
    said = " : ".join(f"{CHOSEN} === '{name}' ? '{name}: {size:,} parameters'" for name, size in sizes.items())
    title = alt.Title(
        alt.ExprRef(f"'scale ' + ({said} : {CHOSEN}) + '; {what}'"), fontWeight="normal", fontSize=11, anchor="start"
    )
    return sized(chart, title=title).add_params(alt.param(name=CHOSEN, value=scales[-1], bind=bound))


def _over_steps(dynamics: pl.DataFrame, shown: Sequence[str], diverged: pl.DataFrame | None) -> list[Row]:
    key = ["scale", "optimizer", "seed"]
    ended_badly = pl.DataFrame(schema={name: dynamics.schema[name] for name in key}) if diverged is None else diverged
    long = dynamics.unpivot(list(shown), index=[*key, "step"], variable_name="figure", value_name="y").drop_nulls("y")
    means = (
        long.join(ended_badly, on=key, how="anti")
        .group_by("scale", "figure", "optimizer", "step")
        .agg(pl.col("y").mean(), low=pl.col("y").min(), high=pl.col("y").max(), n_seeds=pl.len())
    )
    alone = long.join(ended_badly, on=key, how="semi").rename({"y": "last"})
    return pl.concat([means, alone], how="diagonal_relaxed").sort("figure", "scale", "optimizer", "step").to_dicts()


def _panel(
    figure: str, rows: Sequence[Row], layers: Iterable[tuple[str, alt.Chart]], width: int, height: int
) -> Layered:
    """One figure's panel, on an axis that suits it."""
    of_figure = [row for row in rows if row["figure"] == figure]
    heights = {name: [row[name] for row in of_figure if row.get(name) is not None] for name in (*_HEIGHTS, _LAST)}
    values = [value for name in _HEIGHTS for value in heights[name]] or heights[_LAST]
    kind = axis_kind(figure, values)
    domain = domain_of(np.array(values, np.float64), kind, room=0.06, from_zero=figure in COUNTS)
    drawn = [chart.encode(y=_height(column, figure, kind, domain)) for column, chart in layers if heights[column]]
    title = f"{SWEPT[figure].axis}{_AXES[kind]}"
    heading = alt.Title(title, fontWeight="normal", fontSize=12, anchor="middle", offset=6)
    chosen = [alt.FilterTransform(filter=f"datum.figure === '{figure}'")]
    return sized(alt.layer(*drawn), transform=chosen, width=width, height=height, title=heading)


def _height(column: str, figure: str, kind: ScaleKind, domain: tuple[float, float]) -> alt.Y:
    y = position(alt.Y, column, None, kind, domain)
    y["scale"].clamp = True
    if figure in COUNTS:
        y["axis"].tickMinStep = 1
    return y


def _beside(charts: Sequence[Layered], data: alt.InlineData) -> alt.ConcatChart:
    return alt.concat(*charts, data=data, columns=3, spacing=18)


def _notes(lines: list[str]) -> alt.Title:
    return alt.Title(lines, fontWeight="normal", fontSize=11, anchor="start")


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("y:Q", format=_NUMBER, title="mean"),
        alt.Tooltip("low:Q", format=_NUMBER, title="lowest seed"),
        alt.Tooltip("high:Q", format=_NUMBER, title="highest seed"),
        alt.Tooltip("n_seeds:Q", title="seeds"),
    ]


def _of_seeds(rows: Sequence[Row], marks: str) -> str:
    """How many seeds the means are of, and which marks are their range."""
    numbers = sorted({row["n_seeds"] for row in rows if row.get("y") is not None})
    if not numbers:
        return "no run that did not diverge"
    if numbers == [1]:
        return "one seed, no repetition"
    ends = " to ".join(str(number) for number in dict.fromkeys([numbers[0], numbers[-1]]))
    return f"means of {ends} seeds; {marks} from the lowest to the highest"


def _of_diverged(rows: Sequence[Row], marks: str) -> str:
    """Which marks are runs that diverged, if there are any."""
    there = any(row.get(_LAST) is not None for row in rows)
    return f"; {marks}: runs that diverged (at the edge: beyond it)" if there else ""


def _steps(rows: Sequence[Row]) -> alt.X:
    steps = sorted({row["step"] for row in rows})
    scale = alt.Scale(type="symlog", domain=[0, max([1, *steps])], nice=False)
    axis = alt.Axis(values=steps, format=",d", labelFlush=False, labelOverlap="greedy", labelSeparation=3)
    return alt.X("step:Q", title="step", scale=scale, axis=axis)


def _colours(table: pl.DataFrame) -> alt.Scale:
    """The colours of a sweep's optimisers, the same in all of its pictures, whatever each of them shows."""
    there = set(table["optimizer"])
    return alt.Scale(domain=[name for name in OPTIMIZERS if name in there])
