"""Draw what a sweep came to."""

from pathlib import Path

import polars as pl

from outlier_moe.plots.gallery import save_charts
from outlier_moe.plots.sweep import sweep_charts
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    tables = {name: pl.read_parquet(snakemake.input[name]) for name in ("figures", "dynamics")}
    save_charts(sweep_charts(**tables), snakemake.output, vega_bundle=Path(snakemake.input.vega).read_text())
