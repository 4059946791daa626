"""What a sweep came to: every run's measures, its figures at three moments, the answers, and a line for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.scale_sweep.answers import comparisons, trends
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
    facts = pl.DataFrame([_facts(run) for run in runs], infer_schema_length=None, schema_overrides=_OVERRIDES)
    over_steps = [figures_over_steps(pl.read_parquet(run.metrics)) for run in runs]
    targets = _targets(runs, over_steps, facts)
    rows, dynamics = [], []
    for run, steps in zip(runs, over_steps, strict=True):
        key = run.key
        dynamics.append(steps.select(*(pl.lit(value).alias(name) for name, value in key.items()), pl.all()))
        moments = at_moments(steps, targets[run.scale])
        for moment in MOMENTS:
            shown = {"step": moments[moment]["step"], "is_diverged": run.facts()["diverged_at"] is not None}
            values = {name: value for name, value in moments[moment].items() if name != "step"}
            if moment == "end":
                values[COST] = run.facts()["step_time_s"]
                values["learning_rate"] = run.facts()["optimizer_lr"]
            rows += [{**key, "moment": moment, **shown, "figure": name, "value": v} for name, v in values.items()]
    figures = pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"value": pl.Float64, "step": pl.Float64})
    # A diverged run's last figures are those of a checkpoint before it did.
    compared = figures.filter(~pl.col("is_diverged"))
    # Nothing is asked of what is chosen or the same by definition.
    is_given = (pl.col("figure") == "learning_rate") | ((pl.col("figure") == TARGET) & (pl.col("moment") == "matched"))
    known = compared.filter(pl.col("value").is_not_null(), pl.col("moment") != "start", ~is_given)
    return SweepTables(
        summary=completed(SweepSummary, _summary(facts, compared, targets)),
        runs=SweptRunFacts.validate(facts.select(SweptRunFacts.column_names()), cast=True),
        figures=SweptFigure.validate(figures.select(SweptFigure.column_names()), cast=True),
        dynamics=completed(SweepCheckpoint, pl.concat(dynamics, how="diagonal_relaxed")),
        trends=trends(known),
        comparisons=comparisons(known),
    )


_OVERRIDES = {"diverged_at": pl.Int64, "grid_edge": pl.String}


def _facts(run: SweptRun) -> dict[str, Any]:
    facts = run.facts()
    shown = ("n_layers", "n_steps", "diverged_at", "batch_size", "n_accumulate", "time_training_s", COST)
    return {
        **run.key,
        **{name: facts[name] for name in shown},
        "learning_rate": facts["optimizer_lr"],
        # Language models have no grid.
        "grid_edge": facts.get("optimizer_grid_edge"),
        "weight_decay": facts["optimizer_weight_decay"],
        **_times(run.metrics),
    }


def _times(metrics: Path) -> dict[str, float]:
    """What was spent beside training, in seconds: on losses, recordings and other measures."""
    times = pl.read_parquet(metrics).filter(metric="time_s").group_by("place").agg(pl.col("value").sum())
    spent = dict(times.rows())
    return {f"time_{name}_s": spent.get(name, 0.0) for name in ("evaluation", "recording", "measures")}


def _targets(
    runs: Sequence[SweptRun], over_steps: Sequence[pl.DataFrame], facts: pl.DataFrame
) -> dict[str, float | None]:
    """The matched training loss of each scale."""
    targets = {}
    for scale in facts["scale"].unique(maintain_order=True):
        chosen = [
            steps
            for run, steps, diverged_at in zip(runs, over_steps, facts["diverged_at"], strict=True)
            if run.scale == scale and diverged_at is None
        ]
        targets[scale] = target_loss(chosen)
    return targets


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
    return table
