"""From the measures of a run to the figures that runs are compared by: at the start, at matched loss, at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from outlier_moe.presets import Preset
from outlier_moe.recording_files import read_recording
from outlier_moe.upcycling.checkpoint_recording import RECORDED, filter_checkpoints

Moment = Literal["start", "matched", "end"]
MOMENTS: tuple[Moment, ...] = ("start", "matched", "end")
"""`matched`: when the run's training loss is what every other run of its scale reached too."""

TARGET = "train_loss_nats"
_OUTLIERS = ("peak", "kurtosis_of_feature_rms", "excess_kurtosis", "max_median_ratio")
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2", "up_proj", "down_proj")
_LAYERS = "the mean over the layers"

FIGURES: Mapping[str, tuple[str, Sequence[str]]] = {
    "train_loss_nats": ("loss_nats", ("train",)),
    "validation_loss_nats": ("loss_nats", ("validation",)),
    "test_loss_nats": ("loss_nats", ("test",)),
    "train_accuracy": ("accuracy", ("train",)),
    "validation_accuracy": ("accuracy", ("validation",)),
    "test_accuracy": ("accuracy", ("test",)),
    "generalisation_gap_nats": ("generalisation_gap_nats", ("test",)),
    "generalisation_gap_accuracy": ("generalisation_gap_accuracy", ("test",)),
    "weight_effective_rank": ("weight_effective_rank_share", _MATRICES),
    "weight_stable_rank": ("weight_stable_rank", _MATRICES),
    "weight_participation_ratio": ("weight_participation_ratio", _MATRICES),
    "feature_effective_rank": ("feature_effective_rank_share", ("residual",)),
    "feature_stable_rank": ("feature_stable_rank", ("residual",)),
    "feature_participation_ratio": ("feature_participation_ratio", ("residual",)),
    "head_effective_rank": ("feature_effective_rank_share", ("head",)),
    "share_nonpositive": ("activation_share_nonpositive", ("ffn",)),
    "share_near_zero": ("activation_share_near_zero", ("ffn",)),
    "hoyer": ("activation_hoyer", ("ffn",)),
    **{figure: (figure, ("residual",)) for figure in _OUTLIERS},
    "n_systematic": ("n_systematic", ("default preset",)),
}
"""Each figure's measure, and the places that it is the mean over: matrices, and layers where the measure has them.
Effective ranks are shares of min(m, n), the others are as they are."""

COST = "step_time_s"
"""A figure of the end alone: the mean time of a step, without the first."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep, with its files."""

    scale: str
    """The name of its scale."""
    optimizer: str
    """Its optimiser."""
    seed: int
    """Its seed."""
    run: Path
    """Its folder."""
    metrics: Path
    """Its table of measures with the outlier figures: `metrics_of_run`."""

    @property
    def key(self) -> dict[str, Any]:
        """What tells the run from others."""
        facts = self.facts()
        sizes = {name: facts[name] for name in ("d_model", "n_parameters")}
        return {"scale": self.scale, **sizes, "optimizer": self.optimizer, "seed": self.seed}

    def facts(self) -> dict[str, Any]:
        """What `run.json` says."""
        return json.loads((self.run / "run.json").read_text(encoding="utf-8"))


def metrics_of_run(run: Path, presets: Sequence[Preset], *, default: str) -> pl.DataFrame:
    """Everything that was measured on a run: a row per step, metric, place and layer.

    Args:
        run: The run's folder.
        presets: The definitions of an outlier feature.
        default: The one whose count the summary shows.
    """
    tables = [pl.read_parquet(run / "measures.parquet")]
    recordings = run / "recordings"
    if any(recordings.glob("step_*")):
        outliers = filter_checkpoints(recordings, presets)
        tables += [_of_taps(outliers), _ratios(recordings), _systematic(outliers, default)]
    return pl.concat(tables, how="diagonal_relaxed").sort("step", "metric", "place", "layer", nulls_last=True)


def _of_taps(outliers: pl.DataFrame) -> pl.DataFrame:
    at_taps = outliers.filter(pl.col("tap").is_not_null())
    return at_taps.select(
        "step", pl.col("tap").alias("place"), *(pl.col(name) for name in _OUTLIERS if name in outliers.columns)
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


def target_loss(runs: Sequence[pl.DataFrame]) -> float | None:
    """The training loss that every run reached: the highest of their lowest.

    Args:
        runs: What `figures_over_steps` gave for each run that did not diverge.
    """
    lowest = [run[TARGET].min() for run in runs]
    return max((float(loss) for loss in lowest if loss is not None), default=None)  # type: ignore[arg-type]


class AtMoment(NamedTuple):
    """A run's figures at a moment."""

    values: Mapping[str, float | None]
    """Each figure; None where it does not exist."""
    step: float | None
    """The steps done; between two checkpoints where the loss is matched there."""
    gap_steps: float | None = 0.0
    """The steps between those two: what the figures in between are guessed from. 0 at a checkpoint."""
    reason: str | None = None
    """Why the run has no such moment."""


def at_moments(over_steps: pl.DataFrame, target: float | None) -> dict[Moment, AtMoment]:
    """A run's figures at the start, when its training loss first is the target, and at the end.

    Between two checkpoints figures are taken to change in proportion to the training loss.

    Args:
        over_steps: What `figures_over_steps` gave.
        target: The loss; a run that never reaches it, or starts below it, has no figures there.
    """
    rows = over_steps.with_columns(pl.col("step").cast(pl.Float64)).to_dicts()
    return {"start": _measured(rows[0]), "matched": _matched(rows, target), "end": _measured(rows[-1])}


def _measured(row: Mapping[str, float | None]) -> AtMoment:
    return AtMoment({name: value for name, value in row.items() if name != "step"}, row["step"])


def _matched(rows: list[dict[str, Any]], target: float | None) -> AtMoment:
    nothing = AtMoment(dict.fromkeys(name for name in rows[0] if name != "step"), None, None)
    if target is None:
        return nothing._replace(reason="every run of the scale diverged")
    if rows[0][TARGET] is not None and rows[0][TARGET] <= target:
        # The figures there would be those of another loss.
        return nothing._replace(reason="the training loss is the matched one or below from the start")
    for before, after in pairwise(rows):
        if before[TARGET] is None or after[TARGET] is None:
            break
        if after[TARGET] <= target:
            return _measured(after) if after[TARGET] == target else _between(before, after, target)
    return nothing._replace(reason="the matched training loss is never reached")


def _between(before: dict[str, Any], after: dict[str, Any], target: float) -> AtMoment:
    share = (before[TARGET] - target) / (before[TARGET] - after[TARGET])
    row = {
        name: None if value is None or after[name] is None else value + share * (after[name] - value)
        for name, value in before.items()
    }
    return _measured(row)._replace(gap_steps=after["step"] - before["step"])
