"""Hold the recordings of a run's checkpoints against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.presets import presets
from outlier_moe.reporting import reporting_to
from outlier_moe.upcycling.checkpoint_recording import filter_checkpoints

with reporting_to(snakemake.log[0]):
    table = filter_checkpoints(Path(snakemake.input.recordings), presets(snakemake.params))
    table.write_parquet(snakemake.output.outliers)
