"""The summary of a sweep as a terminal shows it."""

from __future__ import annotations

import polars as pl

from outlier_moe.tables.sweeps import COST, GridEdge
from outlier_moe.terminal.figures import plain
from outlier_moe.terminal.presentation import Column, OutputFormat, show_frame, show_note

EDGE_MARKS: dict[GridEdge, str] = {"lowest": " <", "highest": " >", "all diverged": " x"}

TABLE = {
    "scale": Column("scale"),
    "optimizer": Column("optimiser"),
    "n_seeds": Column("runs\n(div.)"),
    "learning_rate": Column("rate"),
    "train_loss_nats": Column("train\nloss", "decimal"),
    "test_loss_nats": Column("test\nloss", "decimal"),
    "test_accuracy": Column("acc.\n%", "percent"),
    "weight_effective_rank": Column("weight\nrank %", "percent"),
    "weight_effective_rank_matched": Column("at m.\nloss", "percent"),
    "feature_effective_rank": Column("feat.\nrank %", "percent"),
    "feature_effective_rank_matched": Column("at m.\nloss", "percent"),
    "kurtosis_of_feature_rms": Column("kurt.", "decimal"),
    "peak": Column("peak", "magnitude"),
    "step_time_s": Column("s per\nstep"),
}
"""Within the 120 characters of a pipe; the other figures are in the files, the pictures and the report."""


def for_terminal(summary: pl.DataFrame) -> pl.DataFrame:
    """The summary with times and rates in as many digits as tell them apart, and rates at their grid's edge marked."""
    diverged = pl.when(pl.col("n_diverged") > 0).then(pl.format(" ({})", "n_diverged")).otherwise(pl.lit(""))
    marks = pl.col("grid_edge").replace_strict(EDGE_MARKS, default="", return_dtype=pl.String)
    rates = pl.col("learning_rate").map_elements(lambda value: f"{value:.2g}", return_dtype=pl.String)
    return summary.with_columns(
        pl.col(COST).map_elements(lambda value: f"{value:.3f}", return_dtype=pl.String).fill_null("-"),
        learning_rate=rates + marks,
        n_seeds=pl.col("n_seeds").cast(pl.String) + diverged,
    )


def edge_note(summary: pl.DataFrame) -> str | None:
    """What the marks mean, if there are any."""
    found = set(summary["grid_edge"].drop_nulls())
    said = []
    if found & {"lowest", "highest"}:
        said.append(
            "Rates marked > (<) are the highest (lowest) of their grid: a better one may lie beyond, and the optimiser "
            "is shown below its best."
        )
    if "all diverged" in found:
        said.append("Where a rate is marked x, every rate of its grid diverged; the lowest was taken.")
    return " ".join([*said, "The grid is `multiples` of the sweep's section."]) if said else None


def matched_note(summary: pl.DataFrame) -> str | None:
    """Where the columns at matched loss are read, and how far that loss is from the one at the start."""
    known = summary.drop_nulls("step_matched")
    if known.is_empty():
        return None
    steps, gaps = known["step_matched"].to_list(), known["gap_steps_matched"].to_list()
    between = (
        f", by a line between two checkpoints, which are up to {plain(max(gaps), 3)} steps apart" if any(gaps) else ""
    )
    losses = known.group_by("scale", maintain_order=True).agg(
        pl.col("target_loss_nats").first(), pl.col("start_loss_nats").mean()
    )
    told = ", ".join(f"{target:.3f} at {scale} ({start:.3f} at the start)" for scale, target, start in losses.rows())
    return (
        "m. loss: where the training loss first is what all runs of the scale reached: after "
        f"{plain(min(steps), 3)} to {plain(max(steps), 3)} steps{between}. It is {told}. comparisons.parquet holds "
        "each two optimisers against each other at the loss that these two reached."
    )


def show_summary(summary: pl.DataFrame, *, output_format: OutputFormat, title: str) -> None:
    """Print the summary: for a person with what its marks mean."""
    if output_format != "table":
        show_frame(summary, TABLE, output_format=output_format, title=title)
        return
    show_frame(for_terminal(summary), TABLE, output_format=output_format, title=title)
    for note in (matched_note(summary), edge_note(summary)):
        if note is not None:
            show_note(note)
