"""The report's pictures of the experiment dense -> MoE, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from outlier_moe.plots.upcycling import upcycling_charts
from outlier_moe.report.charts import Picture, PictureGroup
from outlier_moe.report.tables import Cell, Table, plain_table
from outlier_moe.terminal.presentation import Column
from outlier_moe.upcycling.summary import BOUNDARY, boundary_for_people

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
    drawn = ("checkpoints", "outliers", "history", "experts")
    charts = upcycling_charts(**{name: tables[name] for name in drawn})
    pictures = [
        Picture(f"upcycling-{name}", *_PICTURES[name], chart.to_dict(validate=False), is_wide=True)
        for name, chart in charts.items()
    ]
    shown = [_boundary(tables["summary"]), _samples(tables.get("samples"))]
    found = [table for table in shown if table is not None]
    return [PictureGroup("From dense to mixture of experts", _text(tables["summary"]), pictures, tables=found)]


def _boundary(summary: pl.DataFrame) -> Table:
    """The figures at the boundary and after further training, run by run."""
    columns = {**BOUNDARY, "final_loss_nats": Column("loss at the\nend (nats)")}
    written = pl.col("final_loss_nats").map_elements(lambda value: f"{value:.4f}", return_dtype=pl.String)
    rows = pl.concat([boundary_for_people(summary), summary.select(written)], how="horizontal")
    return Table(
        id="upcycling-boundary",
        title="At the boundary, and at the end",
        text="Losses on the same held-out text.",
        heads=[(" ".join(column.title.split()), name not in _WORDS) for name, column in columns.items()],
        rows=[
            [
                Cell(
                    "–" if row[name] is None else str(row[name]),
                    str(row[name] or ""),
                    "" if name in _WORDS else "number",
                )
                for name in columns
            ]
            for row in rows.iter_rows(named=True)
        ],
    )


_WORDS = ("pair", "arm", "is_equivalent")


def _samples(samples: pl.DataFrame | None) -> Table | None:
    """What the trained models write."""
    if samples is None or samples.is_empty():
        return None
    shown = samples.select("pair", "seed", "arm", "phase", "prompt", "continuation")
    shown = shown.with_columns(pl.col(pl.String).str.replace_all("\n", "↵"))
    text = "Always the likeliest token; phase 1 is the dense model that all arms start from."
    return plain_table("upcycling-samples", "What the trained models go on with", text, shown)


def _text(summary: pl.DataFrame) -> str:
    n_seeds = summary["seed"].n_unique()
    seeds = "one seed, no repetition" if n_seeds == 1 else f"means over {n_seeds} seeds"
    return (
        "A dense model is trained, made a mixture of experts at the dashed line in several ways (arms), and trained on;"
        f" the arm dense is the control. Pictures: {seeds}."
    )
