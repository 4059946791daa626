"""The summary of a sweep as a terminal shows it."""

from __future__ import annotations

import polars as pl

from outlier_moe.scale_sweep.figures import COST
from outlier_moe.terminal.presentation import Column

TABLE = {
    "scale": Column("scale"),
    "optimizer": Column("optimiser"),
    "n_seeds": Column("seeds", "count"),
    "n_diverged": Column("div.", "count"),
    "train_loss_nats": Column("train\nloss", "decimal"),
    "test_loss_nats": Column("test\nloss", "decimal"),
    "test_accuracy": Column("test\nacc. %", "percent"),
    "weight_effective_rank": Column("rank of\nweights %", "percent"),
    "weight_effective_rank_matched": Column("matched", "percent"),
    "feature_effective_rank": Column("rank of\nfeatures %", "percent"),
    "feature_effective_rank_matched": Column("matched", "percent"),
    "hoyer": Column("Hoyer", "decimal"),
    "kurtosis_of_feature_rms": Column("kurt.", "decimal"),
    "peak": Column("peak", "magnitude"),
    "step_time_s": Column("s a step", "text"),
}


def for_terminal(summary: pl.DataFrame) -> pl.DataFrame:
    """The summary with the times of steps in as many digits as tell them apart."""
    return summary.with_columns(
        pl.col(COST).map_elements(lambda value: f"{value:.3f}", return_dtype=pl.String).fill_null("-")
    )
