"""Put what was measured on a run together with the outlier figures of its recordings."""

from pathlib import Path

from outlier_moe.definitions.presets import definition_facts, presets
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.scale_sweep.figures import metrics_of_run
from outlier_moe.tables.files import write_table

with reporting_to(snakemake.log[0], snakemake):
    chosen = presets(snakemake.params)
    table = metrics_of_run(Path(snakemake.input.run), chosen, default=snakemake.params.preset)
    write_table(table, snakemake.output.metrics, definition_facts(chosen))
