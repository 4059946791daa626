"""Optimisers over scales: performance, ranks, sparsity and outliers against size, and all of them over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from outlier_moe.plots.marks import Layered, named

OPTIMIZERS = ["sgd", "adamw", "muon", "shampoo", "soap", "ademamix"]
PANELS: Mapping[str, Mapping[str, str]] = {
    "performance": {
        "train_loss_nats": "training loss (nats)",
        "test_loss_nats": "test loss (nats)",
        "test_accuracy": "test accuracy",
        "generalisation_gap_nats": "generalisation gap (nats)",
        "step_time_s": "time of a step (s)",
    },
    "ranks": {
        "weight_effective_rank": "effective rank of weights / min(m, n)",
        "weight_stable_rank": "stable rank of weights",
        "weight_participation_ratio": "participation ratio of weights",
        "feature_effective_rank": "effective rank of the residual stream / min(m, n)",
        "feature_stable_rank": "stable rank of the residual stream",
        "feature_participation_ratio": "participation ratio of the residual stream",
        "head_effective_rank": "effective rank of what the head reads / min(m, n)",
    },
    "sparsity": {
        "share_nonpositive": "activations at or below 0",
        "share_near_zero": "activations near 0",
        "hoyer": "Hoyer's sparseness",
    },
    "outliers": {
        "kurtosis_of_feature_rms": "kurtosis of feature RMS",
        "excess_kurtosis": "excess kurtosis",
        "max_median_ratio": "largest |x| / median",
        "peak": "largest |x|",
    },
}
"""The figures of each picture against size, with what their axes are called."""
DYNAMICS = (
    "train_loss_nats",
    "test_loss_nats",
    "weight_effective_rank",
    "feature_effective_rank",
    "hoyer",
    "kurtosis_of_feature_rms",
    "max_median_ratio",
    "peak",
)
_TITLES = {figure: title for panels in PANELS.values() for figure, title in panels.items()}


def sweep_charts(*, figures: pl.DataFrame, dynamics: pl.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """The pictures of a sweep.

    Args:
        figures: The table `figures` of `scale_sweep.summary.SweepTables`.
        dynamics: The table `dynamics` of the same.
    """
    charts: dict[str, alt.TopLevelMixin] = {
        name: size_chart(figures, panels, name=name) for name, panels in PANELS.items()
    }
    return charts | {"dynamics": dynamics_chart(dynamics)}


def size_chart(
    figures: pl.DataFrame, panels: Mapping[str, str], *, name: str, width: int = 220, height: int = 170
) -> alt.FacetChart:
    """Figures against the number of parameters: the mean of the seeds with their range, at the end and at matched loss.

    Runs that diverged have a cross of their own, at the last that was measured.

    Args:
        figures: The table of figures.
        panels: Those to show, with their titles.
        name: What the page finds the rows by.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    shown = figures.filter(
        pl.col("moment") != "start", pl.col("figure").is_in(list(panels)), pl.col("value").is_not_null()
    )
    rows = (
        shown.filter((pl.col("moment") == "end") | ~pl.col("is_diverged"))
        .group_by("figure", "moment", "optimizer", "scale", "n_parameters", "is_diverged")
        .agg(y=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max(), n_seeds=pl.len())
        # Each kind of mark has columns of its own: filters in every layer are more than Vega-Lite can make simpler.
        .with_columns(last=pl.when("is_diverged").then("y"))
        .with_columns(pl.when(~pl.col("is_diverged")).then(pl.col("y", "low", "high")))
        .with_columns(panel=pl.col("figure").replace_strict(panels, return_dtype=pl.String))
        .sort("figure", "moment", "optimizer", "n_parameters", "is_diverged")
        .rows(named=True)
    )
    x = alt.X(
        "n_parameters:Q",
        title="parameters",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format=".2~s", values=sorted({row["n_parameters"] for row in rows}), labelOverlap=True),
    )
    base = alt.Chart().encode(x=x, color=_colour(rows))
    whose = ["optimizer:N", "scale:N", "moment:N"]
    tooltip = [
        *whose,
        alt.Tooltip("y:Q", format=",.4~r", title="mean"),
        alt.Tooltip("low:Q", format=",.4~r", title="lowest seed"),
        alt.Tooltip("high:Q", format=",.4~r", title="highest seed"),
        alt.Tooltip("n_seeds:Q", title="seeds"),
    ]
    line = base.mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=26)).encode(
        y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False)),
        strokeDash=alt.StrokeDash("moment:N", scale=alt.Scale(domain=["end", "matched"]), legend=None),
        # Or a run that diverged, which has no place on its line, would cut the line of those that did not.
        detail="is_diverged:N",
        tooltip=tooltip,
    )
    # The last that was measured of runs that diverged.
    cross = base.mark_point(shape="cross", angle=45, size=60, filled=True)
    last = alt.Tooltip("last:Q", format=",.4~r", title="last measured of runs that diverged")
    cross = cross.encode(y=alt.Y("last:Q", title=None), tooltip=[*whose, last])
    bar = base.mark_rule(strokeWidth=1, opacity=0.7).encode(
        y=alt.Y("low:Q", title=None), y2="high:Q", detail="moment:N"
    )
    chart = _faceted(alt.layer(bar, line, cross, data=named(rows, name)), list(panels.values()), width, height)
    lines = alt.Title("solid: at the end; dashed: at matched training loss", fontWeight="normal", fontSize=11)
    return chart.properties(title=lines)


def dynamics_chart(dynamics: pl.DataFrame, *, width: int = 220, height: int = 150) -> alt.FacetChart:
    """Figures over the steps at the largest scale: the mean of the seeds that are there at a step.

    Args:
        dynamics: The table of dynamics.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    largest = dynamics.filter(pl.col("n_parameters") == pl.col("n_parameters").max())
    shown = [
        figure for figure in DYNAMICS if figure in dynamics.columns and dynamics[figure].null_count() < len(dynamics)
    ]
    rows = (
        largest.unpivot(shown, index=["scale", "optimizer", "seed", "step"], variable_name="figure", value_name="y")
        .drop_nulls("y")
        .group_by("scale", "figure", "optimizer", "step")
        .agg(pl.col("y").mean())
        .with_columns(panel=pl.col("figure").replace_strict(_TITLES, return_dtype=pl.String))
        .sort("figure", "optimizer", "step")
        .rows(named=True)
    )
    line = (
        alt.Chart()
        .mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=20))
        .encode(
            # Checkpoints are the denser the earlier, step 0 among them.
            x=alt.X("step:Q", title="step", scale=alt.Scale(type="symlog"), axis=_step_axis(rows)),
            y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False)),
            color=_colour(rows),
            tooltip=["optimizer:N", "scale:N", "step:Q", alt.Tooltip("y:Q", format=",.4~r", title="mean")],
        )
    )
    return _faceted(alt.layer(line, data=named(rows, "dynamics")), [_TITLES[name] for name in shown], width, height)


def _step_axis(rows: Sequence[Mapping[str, object]]) -> alt.Axis:
    steps = sorted({step for row in rows if isinstance(step := row["step"], int)})
    return alt.Axis(values=steps, format="~s", labelOverlap=True)


def _faceted(layers: Layered, panels: Sequence[str], width: int, height: int) -> alt.FacetChart:
    facets = layers.properties(width=width, height=height).facet(
        facet=alt.Facet("panel:N", title=None, sort=list(panels)), columns=3
    )
    # Panels have units of their own.
    return facets.resolve_scale(y="independent").resolve_axis(x="independent")


def _colour(rows: Sequence[Mapping[str, object]]) -> alt.Color:
    there = {row["optimizer"] for row in rows}
    return alt.Color("optimizer:N", title=None, scale=alt.Scale(domain=[name for name in OPTIMIZERS if name in there]))
