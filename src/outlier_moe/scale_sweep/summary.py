"""The summary of a sweep: measures of all runs, figures at three moments, the answers, and a row for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.scale_sweep.answers import comparisons, pairs_of, trends
from outlier_moe.scale_sweep.figures import TARGET, SweptRun, figures_over_steps
from outlier_moe.scale_sweep.matched_loss import Curve, of_each_optimizer, of_each_two
from outlier_moe.scale_sweep.moments import at_moments, target_loss
from outlier_moe.tables.completing import completed
from outlier_moe.tables.files import made_again, read_table
from outlier_moe.tables.sweeps import COST, MOMENTS, SweepCheckpoint, SweepSummary, SweptFigure, SweptRunFacts
from outlier_moe.training.history import TABLE


class SweepTables(NamedTuple):
    """The tables of a sweep."""

    summary: pl.DataFrame
    """`schemas.sweeps.SweepSummary`."""
    runs: pl.DataFrame
    """`schemas.sweeps.SweptRunFacts`."""
    figures: pl.DataFrame
    """`schemas.sweeps.SweptFigure`."""
    dynamics: pl.DataFrame
    """`schemas.sweeps.SweepCheckpoint`."""
    trends: pl.DataFrame
    """`schemas.sweeps.SweepTrend`."""
    comparisons: pl.DataFrame
    """`schemas.sweeps.SweepComparison`."""


def summarise_sweep(runs: Sequence[SweptRun]) -> SweepTables:
    """Put the runs of a sweep together."""
    facts = pl.DataFrame([_facts(run) for run in runs], infer_schema_length=None, schema_overrides=_OF_RUN)
    over_steps = [figures_over_steps(read_table(run.metrics)) for run in runs]
    curves = [
        Curve(run, steps)
        for run, steps, diverged_at in zip(runs, over_steps, facts["diverged_at"], strict=True)
        if diverged_at is None
    ]
    targets = {
        scale: target_loss([curve.steps for curve in curves if curve.run.scale == scale])
        for scale in facts["scale"].unique(maintain_order=True)
    }
    rows, dynamics = [], []
    for run, steps in zip(runs, over_steps, strict=True):
        dynamics.append(steps.select(*(pl.lit(value).alias(name) for name, value in run.key.items()), pl.all()))
        rows += _figures(run, steps, targets[run.scale])
    figures = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=_OF_FIGURE)
    # A diverged run's last figures are those of the last checkpoint whose loss was a number.
    compared = figures.filter(~pl.col("is_diverged"))
    at_end = compared.filter(moment="end").drop("step", "gap_steps", "reason").filter(~_IS_GIVEN)
    pairs = [pairs_of(table.filter(~_IS_GIVEN)) for table in (at_end, *of_each_two(curves))]
    followed = [table.filter(~_IS_GIVEN) for table in of_each_optimizer(curves)]
    return SweepTables(
        summary=completed(SweepSummary, _summary(facts, compared, targets)),
        runs=SweptRunFacts.validate(facts.select(SweptRunFacts.column_names()), cast=True),
        figures=SweptFigure.validate(figures.select(SweptFigure.column_names()), cast=True),
        dynamics=completed(SweepCheckpoint, pl.concat(dynamics, how="diagonal_relaxed")),
        trends=trends(pl.concat([at_end, *followed], how="diagonal")),
        comparisons=comparisons(pl.concat(pairs)),
    )


# Nothing is asked of what is chosen or the same by definition.
_IS_GIVEN = (pl.col("figure") == "learning_rate") | ((pl.col("figure") == TARGET) & (pl.col("moment") == "matched"))

_OF_RUN = {
    "decay_alone": pl.Float64,
    "clipped_share": pl.Float64,
    "diverged_at": pl.Int64,
    "grid_edge": pl.String,
    "n_classes": pl.Int64,
}
_OF_FIGURE = {
    "value": pl.Float64,
    "value_low": pl.Float64,
    "value_high": pl.Float64,
    "step": pl.Float64,
    "gap_steps": pl.Float64,
    "reason": pl.String,
}


def _figures(run: SweptRun, steps: pl.DataFrame, target: float | None) -> list[dict[str, Any]]:
    """The figures of a run at each moment, a row each."""
    facts, key, rows = run.facts(), run.key, []
    moments = at_moments(steps, target)
    for moment in MOMENTS:
        at = moments[moment]
        given = {COST: facts["step_time_s"], "learning_rate": facts["optimizer_lr"]} if moment == "end" else {}
        shown = {"moment": moment, "step": at.step, "gap_steps": at.gap_steps, "reason": at.reason}
        shown |= {"is_diverged": facts["diverged_at"] is not None}
        values, lowest, highest = ({**of, **given} for of in (at.values, at.lowest, at.highest))
        rows += [
            {**key, **shown, "figure": name, "value": value, "value_low": lowest[name], "value_high": highest[name]}
            for name, value in values.items()
        ]
    return rows


def _facts(run: SweptRun) -> dict[str, Any]:
    facts = run.facts()
    shown = ("n_layers", "n_steps", "diverged_at", "batch_size", "n_accumulate", "time_training_s", COST)
    return {
        **run.key,
        **{name: facts[name] for name in shown},
        "learning_rate": facts["optimizer_lr"],
        "grid_edge": facts["optimizer_grid_edge"],
        "weight_decay": facts["optimizer_weight_decay"],
        "n_classes": facts["data"].get("n_classes"),
        **_of_steps(run.run / TABLE, facts),
        **_times(run.metrics),
    }


def _of_steps(history: Path, facts: Mapping[str, Any]) -> dict[str, float | None]:
    """Effects of weight decay and clipping over a run's steps; nothing for a run that diverged."""
    if facts["diverged_at"] is not None:
        return {"decay_alone": None, "clipped_share": None}
    steps, limit = read_table(history, remedy=made_again(history.parent)), facts.get("max_gradient_norm")
    clipped = None if limit is None else pl.col("gradient_norm") > limit
    return steps.select(
        decay_alone=(1 - pl.col("learning_rate") * facts["optimizer_weight_decay"]).product(),
        clipped_share=pl.lit(None, pl.Float64) if clipped is None else clipped.mean(),
    ).row(0, named=True)


def _times(metrics: Path) -> dict[str, float]:
    """Seconds spent on losses, recordings and other measures."""
    times = read_table(metrics).filter(metric="time_s").group_by("place").agg(pl.col("value").sum())
    spent = dict(times.rows())
    return {f"time_{name}_s": spent.get(name, 0.0) for name in ("evaluation", "recording", "measures")}


def _summary(facts: pl.DataFrame, figures: pl.DataFrame, targets: dict[str, float | None]) -> pl.DataFrame:
    key = ["scale", "optimizer"]
    table = facts.group_by(key, maintain_order=True).agg(
        pl.col("d_model", "n_parameters", "batch_size", "learning_rate", "grid_edge").first(),
        n_seeds=pl.len(),
        n_diverged=pl.col("diverged_at").is_not_null().sum(),
    )
    target = pl.col("scale").replace_strict(targets, return_dtype=pl.Float64)
    table = table.with_columns(target_loss_nats=target)
    for moment, suffix in (("end", ""), ("matched", "_matched")):
        chosen = figures.filter(pl.col("moment") == moment, pl.col("figure") != "learning_rate")
        if chosen.is_empty():
            continue
        means = chosen.pivot("figure", index=key, values="value", aggregate_function="mean")
        means = means.rename({name: f"{name}{suffix}" for name in means.columns if name not in key})
        table = table.join(means, on=key, how="left", maintain_order="left")
    start = figures.filter(moment="start", figure=TARGET).group_by(key).agg(start_loss_nats=pl.col("value").mean())
    table = table.join(start, on=key, how="left", maintain_order="left")
    # Where the matched figures are read, of the seeds that have them.
    matched = figures.filter(moment="matched", figure=TARGET).group_by(key)
    where = matched.agg(
        n_matched=pl.col("step").count(),
        step_matched=pl.col("step").mean(),
        gap_steps_matched=pl.col("gap_steps").max(),
    )
    return table.join(where, on=key, how="left", maintain_order="left").with_columns(pl.col("n_matched").fill_null(0))
