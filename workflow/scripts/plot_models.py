"""Plot the comparison of the study's models."""

from pathlib import Path

import polars as pl

from outlier_moe.plots import outlier_chart, save_chart
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    chart = outlier_chart(pl.read_parquet(snakemake.input.models), preset=snakemake.params.preset)
    save_chart(chart, dict(snakemake.output.items()), vega_bundle=Path(snakemake.input.vega).read_text())
