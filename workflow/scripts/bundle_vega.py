"""Bundle Vega, Vega-Lite and Vega-Embed as one script."""

from pathlib import Path

from outlier_moe.plots.saving import bundled
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    Path(snakemake.output.script).write_text(bundled())
