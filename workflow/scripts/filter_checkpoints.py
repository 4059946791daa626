"""Hold the recordings of the checkpoints of a seed against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.definitions.presets import definition_facts, presets
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.tables.files import write_table
from outlier_moe.upcycling.checkpoint_recording import filter_checkpoints

with reporting_to(snakemake.log[0], snakemake):
    chosen = presets(snakemake.params)
    for recordings, outliers in zip(snakemake.input.recordings, snakemake.output.outliers, strict=True):
        write_table(filter_checkpoints(Path(recordings), chosen), outliers, definition_facts(chosen))
