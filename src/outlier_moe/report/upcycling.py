"""The report's pictures of the experiment dense -> MoE, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from outlier_moe.plots.upcycling import upcycling_charts
from outlier_moe.report.charts import Picture, PictureGroup
from outlier_moe.report.sentences import signed

_PICTURES = {
    "losses": ("Loss over both phases", "Lines: training, the mean of ten steps; points: held-out text."),
    "expert-load": ("Expert load at the end", "Share of the held-out tokens that each expert works on."),
    "peaks": ("Largest |x| over both phases", "At each tap; each panel has a scale of its own."),
    "kurtosis": ("Kurtosis of feature RMS over both phases", "The mean over the layers; each panel has its own scale."),
}


def upcycling_pictures(tables: Mapping[str, pl.DataFrame]) -> list[PictureGroup]:
    """The group of pictures, or none if the experiment was not run.

    Args:
        tables: The tables of `upcycling.summary.UpcyclingTables`, by name.
    """
    if not tables:
        return []
    charts = upcycling_charts(**{name: table for name, table in tables.items() if name != "summary"})
    pictures = [
        Picture(f"upcycling-{name}", *_PICTURES[name], chart.to_dict(validate=False), is_wide=True)
        for name, chart in charts.items()
    ]
    return [PictureGroup("From dense to mixture of experts", _text(tables["summary"]), pictures)]


def _text(summary: pl.DataFrame) -> str:
    n_seeds = summary["seed"].n_unique()
    seeds = "one seed, no repetition" if n_seeds == 1 else f"means over {n_seeds} seeds"
    ends = (
        summary.group_by("pair", "arm", maintain_order=True)
        .agg(pl.col("final_loss_nats", "boundary_jump_nats").mean())
        .rows(named=True)
    )
    listed = "; ".join(
        f"{row['arm']} ({row['pair']}) {row['final_loss_nats']:.4f}, jump {signed(row['boundary_jump_nats'], 4)}"
        for row in ends
    )
    return (
        "A dense model is trained, made a mixture of experts at the dashed line in several ways (arms), and trained on;"
        f" the arm dense is the control ({seeds}). Held-out loss at the end in nats, and its jump at the line on the"
        f" same text: {listed}."
    )
