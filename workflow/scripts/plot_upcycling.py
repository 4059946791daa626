"""Draw what the upcycling experiment came to."""

from pathlib import Path

import polars as pl

from outlier_moe.plots.gallery import save_charts
from outlier_moe.plots.upcycling import upcycling_charts
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    names = ("checkpoints", "outliers", "history", "experts")
    charts = upcycling_charts(**{name: pl.read_parquet(snakemake.input[name]) for name in names})
    save_charts(charts, snakemake.output, vega_bundle=Path(snakemake.input.vega).read_text())
