"""Draw what a sweep came to."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots.gallery import save_charts
from outlier_moe.plots.sweep import sweep_charts
from outlier_moe.tables.files import read_table

with reporting_to(snakemake.log[0], snakemake):
    tables = {name: read_table(snakemake.input[name]) for name in ("figures", "dynamics")}
    save_charts(sweep_charts(**tables), snakemake.output, vega_bundle=Path(snakemake.input.vega).read_text())
