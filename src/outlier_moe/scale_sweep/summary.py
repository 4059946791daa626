"""What a sweep came to: every run's measures, its figures at three moments, the answers, and a line for each run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.scale_sweep.answers import comparisons, pairs_of, trends
from outlier_moe.scale_sweep.figures import COST, MOMENTS, TARGET, SweptRun, at_moments, figures_over_steps, target_loss
from outlier_moe.schemas.completing import completed
from outlier_moe.schemas.sweeps import SweepCheckpoint, SweepSummary, SweptFigure, SweptRunFacts


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
    over_steps = [figures_over_steps(pl.read_parquet(run.metrics)) for run in runs]
    curves = [
        _Curve(run, steps)
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
    # A diverged run's last figures are those of a checkpoint before it did.
    compared = figures.filter(~pl.col("is_diverged"))
    known = compared.filter(pl.col("moment") != "start", ~_IS_GIVEN)
    pairs = [pairs_of(known.filter(moment="end")), *_pairs_at_matched_loss(curves)]
    return SweepTables(
        summary=completed(SweepSummary, _summary(facts, compared, targets)),
        runs=SweptRunFacts.validate(facts.select(SweptRunFacts.column_names()), cast=True),
        figures=SweptFigure.validate(figures.select(SweptFigure.column_names()), cast=True),
        dynamics=completed(SweepCheckpoint, pl.concat(dynamics, how="diagonal_relaxed")),
        trends=trends(known),
        comparisons=comparisons(pl.concat(pairs)),
    )


class _Curve(NamedTuple):
    """A run that did not diverge."""

    run: SweptRun
    steps: pl.DataFrame
    """Its figures at every checkpoint."""


# Nothing is asked of what is chosen or the same by definition.
_IS_GIVEN = (pl.col("figure") == "learning_rate") | ((pl.col("figure") == TARGET) & (pl.col("moment") == "matched"))

_OF_RUN = {"diverged_at": pl.Int64, "grid_edge": pl.String, "n_classes": pl.Int64}
_OF_MATCHED = {
    "scale": pl.String,
    "optimizer": pl.String,
    "seed": pl.Int64,
    "figure": pl.String,
    "value": pl.Float64,
}
_OF_FIGURE = {
    "value": pl.Float64,
    "step": pl.Float64,
    "gap_steps": pl.Float64,
    "reason": pl.String,
}


def _figures(run: SweptRun, steps: pl.DataFrame, target: float | None) -> list[dict[str, Any]]:
    """The figures of a run at each moment, a row each."""
    facts, key, rows = run.facts(), run.key, []
    moments = at_moments(steps, target)
    for moment in MOMENTS:
        values, *where = moments[moment]
        if moment == "end":
            values = {**values, COST: facts["step_time_s"], "learning_rate": facts["optimizer_lr"]}
        shown = dict(zip(("step", "gap_steps", "reason"), where, strict=True))
        shown |= {"moment": moment, "is_diverged": facts["diverged_at"] is not None}
        rows += [{**key, **shown, "figure": name, "value": value} for name, value in values.items()]
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
        **_times(run.metrics),
    }


def _times(metrics: Path) -> dict[str, float]:
    """What was spent beside training, in seconds: on losses, recordings and other measures."""
    times = pl.read_parquet(metrics).filter(metric="time_s").group_by("place").agg(pl.col("value").sum())
    spent = dict(times.rows())
    return {f"time_{name}_s": spent.get(name, 0.0) for name in ("evaluation", "recording", "measures")}


def _pairs_at_matched_loss(curves: Sequence[_Curve]) -> list[pl.DataFrame]:
    """The runs of each two optimisers, scale by scale, at the training loss that all runs of the two reached there."""
    optimizers = list(dict.fromkeys(curve.run.optimizer for curve in curves))
    tables = []
    for scale in dict.fromkeys(curve.run.scale for curve in curves):
        for two in combinations(optimizers, 2):
            of_two = [(name, scale) for name in two]
            chosen = [curve for key in of_two for curve in curves if (curve.run.optimizer, curve.run.scale) == key]
            target = target_loss([curve.steps for curve in chosen])
            matched = [at_moments(curve.steps, target)["matched"] for curve in chosen]
            rows = [
                {"scale": scale, "optimizer": run.optimizer, "seed": run.seed, "figure": figure, "value": value}
                for (run, _), found in zip(chosen, matched, strict=True)
                for figure, value in found.values.items()
            ]
            # Of a scale where one of the two diverged there are no pairs.
            figures = pl.DataFrame(rows, schema=_OF_MATCHED).with_columns(moment=pl.lit("matched"))
            gap_steps = max((found.gap_steps for found in matched if found.gap_steps is not None), default=None)
            tables.append(pairs_of(figures.filter(~_IS_GIVEN), target_loss_nats=target, gap_steps=gap_steps))
    return tables


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
