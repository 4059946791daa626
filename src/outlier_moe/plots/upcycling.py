"""The transition from dense to MoE: losses, expert load and outlier figures over the steps, the boundary marked."""

from __future__ import annotations

import altair as alt
import polars as pl

from outlier_moe.plots.marks import named
from outlier_moe.tables.titles import SWEPT

ARMS = ["phase 1", "dense", "zero", "router_noise", "drop", "virtual_group"]
STEP = "step (both phases)"
WINDOW = 10


def upcycling_charts(
    *, checkpoints: pl.DataFrame, outliers: pl.DataFrame, history: pl.DataFrame, experts: pl.DataFrame
) -> dict[str, alt.TopLevelMixin]:
    """The pictures of the experiment, from the tables of `upcycling.summary.UpcyclingTables`."""
    boundary = int(checkpoints.filter(phase=1)["step"].max())  # type: ignore[arg-type]
    return {
        "losses": losses_chart(history, checkpoints, boundary=boundary),
        "expert-load": load_chart(experts),
        "peaks": outlier_chart(outliers, boundary=boundary, figure="peak"),
        "kurtosis": outlier_chart(outliers, boundary=boundary, figure="kurtosis_of_feature_rms"),
    }


def losses_chart(
    history: pl.DataFrame, checkpoints: pl.DataFrame, *, boundary: int, width: int = 460, height: int = 280
) -> alt.LayerChart | alt.FacetChart:
    """The loss of each step (the mean of ten, over all seeds) as lines, that on held-out text as points.

    Args:
        history: The table of the steps.
        checkpoints: The table of the checkpoints.
        boundary: The step at which the dense model becomes a mixture.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    nats = pl.coalesce("loss_nats", "loss") if "loss_nats" in history.columns else pl.col("loss")
    lines = (
        history.group_by("pair", "arm", (pl.col("step") // WINDOW * WINDOW + WINDOW / 2).alias("step"))
        .agg(y=nats.mean())
        .sort("pair", "arm", "step")
    )
    points = (
        checkpoints.with_columns(arm=pl.when(phase=1).then(pl.lit("phase 1")).otherwise("arm"))
        .group_by("pair", "arm", "step")
        .agg(y=pl.col("held_out_loss_nats").mean())
        .sort("pair", "arm", "step")
    )
    rows = [
        {**row, "what": what}
        for what, table in (("training", lines), ("held out", points))
        for row in table.iter_rows(named=True)
    ]
    base = alt.Chart().encode(
        x=alt.X("step:Q", title=STEP),
        y=alt.Y("y:Q", title="loss (nats)", scale=alt.Scale(zero=False)),
        color=_arm_colour(rows),
        tooltip=["arm:N", "what:N", "step:Q", alt.Tooltip("y:Q", format=".4f", title="loss (nats)")],
    )
    training = base.transform_filter("datum.what == 'training'").mark_line(strokeWidth=1.5)
    held_out = base.transform_filter("datum.what == 'held out'").mark_point(size=30, filled=True)
    layers = alt.layer(training, held_out, _rule(boundary), data=named(rows, "losses"))
    return layers.properties(width=width, height=height).facet(facet=alt.Facet("pair:N", title=None), columns=2)


def load_chart(experts: pl.DataFrame, *, width: int = 200) -> alt.FacetChart:
    """The share of the tokens that each expert of each layer works on at the last checkpoint, the mean of all seeds.

    Args:
        experts: The table of the experts.
        width: Pixels between the axis' ends.
    """
    rows = (
        experts.filter(pl.col("step") == pl.col("step").max().over("pair", "arm"))
        .group_by("pair", "arm", "layer", "expert")
        .agg(pl.col("load_share").mean())
        .with_columns(panel=_panel("arm", experts))
        .sort("pair", "arm", "layer", "expert")
        .rows(named=True)
    )
    chart = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X(
                "expert:O",
                title="expert",
                axis=alt.Axis(grid=False, labelAngle=0, labelOverlap=True, labelSeparation=4),
            ),
            y=alt.Y("layer:O", title="layer", axis=alt.Axis(grid=False)),
            color=alt.Color("load_share:Q", title="share of the load", legend=alt.Legend(format="%")),
            tooltip=["arm:N", "layer:O", "expert:O", alt.Tooltip("load_share:Q", format=".1%")],
        )
        .properties(width=width, height=90)
    )
    # Arms differ in how many experts they have.
    facets = alt.layer(chart, data=named(rows, "experts")).facet(facet=alt.Facet("panel:N", title=None), columns=2)
    return facets.resolve_scale(x="independent")


def outlier_chart(
    outliers: pl.DataFrame, *, boundary: int, figure: str, width: int = 220, height: int = 180
) -> alt.FacetChart:
    """One figure of each tap over the steps of both phases, the mean of all seeds.

    Args:
        outliers: The table of outlier figures.
        boundary: The step at which the dense model becomes a mixture.
        figure: The column.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    rows = (
        outliers.filter(pl.col("tap").is_not_null(), pl.col(figure).is_not_null())
        .with_columns(arm=pl.when(phase=1).then(pl.lit("phase 1")).otherwise("arm"))
        .group_by("pair", "tap", "arm", "step")
        .agg(y=pl.col(figure).mean())
        .with_columns(panel=_panel("tap", outliers))
        .sort("pair", "tap", "arm", "step")
        .rows(named=True)
    )
    line = (
        alt.Chart()
        .mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=24))
        .encode(
            x=alt.X("step:Q", title=STEP),
            y=alt.Y("y:Q", title=SWEPT[figure].axis, scale=alt.Scale(zero=False)),
            color=_arm_colour(rows),
            tooltip=["arm:N", "tap:N", "step:Q", alt.Tooltip("y:Q", format=",.4~r", title=SWEPT[figure].axis)],
        )
    )
    layers = alt.layer(line, _rule(boundary), data=named(rows, figure)).properties(width=width, height=height)
    facets = layers.facet(facet=alt.Facet("panel:N", title=None), columns=2)
    return facets.resolve_scale(y="independent")


def _panel(name: str, table: pl.DataFrame) -> pl.Expr:
    """What a panel is called: with the pair, where there are several."""
    return pl.col(name) if table["pair"].n_unique() == 1 else pl.format("{}: {}", "pair", name)


def _arm_colour(rows: list[dict[str, object]]) -> alt.Color:
    there = {row["arm"] for row in rows}
    return alt.Color("arm:N", title=None, scale=alt.Scale(domain=[arm for arm in ARMS if arm in there]))


def _rule(boundary: int) -> alt.Chart:
    return alt.Chart().mark_rule(strokeDash=[4, 3], strokeWidth=1.5).encode(x=alt.datum(boundary, type="quantitative"))
