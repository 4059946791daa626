"""Bundle Vega, Vega-Lite and Vega-Embed as one script."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots.saving import bundled

with reporting_to(snakemake.log[0], snakemake):
    Path(snakemake.output.script).write_text(bundled())
