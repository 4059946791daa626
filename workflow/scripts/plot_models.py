"""Plot the comparison of the study's models."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots import outlier_chart, save_chart
from outlier_moe.tables.files import read_table

with reporting_to(snakemake.log[0], snakemake):
    chart = outlier_chart(read_table(snakemake.input.models), preset=snakemake.params.preset)
    save_chart(chart, dict(snakemake.output.items()), vega_bundle=Path(snakemake.input.vega).read_text())
