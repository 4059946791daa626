"""Draw what the upcycling experiment came to."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots.gallery import save_charts
from outlier_moe.plots.upcycling import upcycling_charts
from outlier_moe.tables.files import read_table

with reporting_to(snakemake.log[0], snakemake):
    names = ("checkpoints", "outliers", "history", "experts")
    charts = upcycling_charts(**{name: read_table(snakemake.input[name]) for name in names})
    save_charts(charts, snakemake.output, vega_bundle=Path(snakemake.input.vega).read_text())
