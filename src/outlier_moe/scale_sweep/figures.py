"""From the measures of a run to the figures that runs are compared by, at every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.definitions.presets import Preset
from outlier_moe.tables.files import made_again, read_table
from outlier_moe.tables.recording import read_recording
from outlier_moe.tables.sweeps import FIGURES, OUTLIER_FIGURES
from outlier_moe.upcycling.checkpoint_recording import RECORDED, filter_checkpoints

TARGET = "train_loss_nats"


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep, with its files."""

    scale: str
    """The name of its scale."""
    optimizer: str
    seed: int
    run: Path
    """Folder of the run."""
    metrics: Path
    """Its table of measures with the outlier figures: `metrics_of_run`."""

    @property
    def key(self) -> dict[str, Any]:
        """Scale, optimiser and seed: what identifies the run."""
        facts = self.facts()
        sizes = {name: facts[name] for name in ("d_model", "n_parameters")}
        return {"scale": self.scale, **sizes, "optimizer": self.optimizer, "seed": self.seed}

    def facts(self) -> dict[str, Any]:
        """The contents of `run.json`."""
        return json.loads((self.run / "run.json").read_text(encoding="utf-8"))


def metrics_of_run(run: Path, presets: Sequence[Preset], *, default: str) -> pl.DataFrame:
    """Everything that was measured on a run: a row per step, metric, place and layer.

    Args:
        run: The run's folder.
        presets: The definitions of an outlier feature.
        default: The one whose count the summary shows.
    """
    tables = [read_table(run / "measures.parquet", remedy=made_again(run))]
    recordings = run / "recordings"
    if any(recordings.glob("step_*")):
        outliers = filter_checkpoints(recordings, presets)
        tables += [_of_taps(outliers), _ratios(recordings), _systematic(outliers, default)]
    return pl.concat(tables, how="diagonal_relaxed").sort("step", "metric", "place", "layer", nulls_last=True)


def _of_taps(outliers: pl.DataFrame) -> pl.DataFrame:
    at_taps = outliers.filter(pl.col("tap").is_not_null())
    return at_taps.select(
        "step", pl.col("tap").alias("place"), *(pl.col(name) for name in OUTLIER_FIGURES if name in outliers.columns)
    ).unpivot(index=["step", "place"], variable_name="metric", value_name="value")


def _ratios(recordings: Path) -> pl.DataFrame:
    """The largest |x| over the median magnitude: of each layer the median of the sequences, and of these the mean."""
    tables = []
    for folder in sorted(recordings.glob("step_*")):
        sites = read_recording(folder / RECORDED).sites()
        found = (
            sites.group_by(pl.col("tap").cast(pl.String).alias("place"), "layer")
            .agg(pl.col("max_median_ratio").median())
            .group_by("place")
            .agg(value=pl.col("max_median_ratio").mean())
        )
        step = int(folder.name.removeprefix("step_"))
        tables.append(found.with_columns(step=pl.lit(step, pl.Int64), metric=pl.lit("max_median_ratio")))
    return pl.concat(tables)


def _systematic(outliers: pl.DataFrame, default: str) -> pl.DataFrame:
    counted = outliers.filter(pl.col("preset").is_not_null()).with_columns(pl.col("n_systematic").cast(pl.Float64))
    without_first = (
        pl.when(first_token="excluded").then(pl.lit("n_systematic_without_first")).otherwise(pl.lit("n_systematic"))
    )
    rows = counted.select("step", metric=without_first, place="preset", value="n_systematic")
    shown = rows.filter(place=default).with_columns(place=pl.lit("default preset"))
    return pl.concat([rows, shown])


def figures_over_steps(metrics: pl.DataFrame) -> pl.DataFrame:
    """The figures of a run at every checkpoint: one row per step, one column per figure; null where it is not finite.

    Args:
        metrics: What `metrics_of_run` gave.
    """
    columns = []
    for figure, (metric, places) in FIGURES.items():
        chosen = metrics.filter(pl.col("metric") == metric, pl.col("place").is_in(list(places)))
        mean = pl.col("value").mean()
        columns.append(chosen.group_by("step").agg(pl.when(mean.is_finite()).then(mean).alias(figure)))
    table = metrics.select(pl.col("step").unique().sort())
    for column in columns:
        table = table.join(column, on="step", how="left", maintain_order="left")
    return table
