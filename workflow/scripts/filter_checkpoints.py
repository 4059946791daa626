"""Hold the recordings of the checkpoints of a seed against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.presets import presets
from outlier_moe.reporting import reporting_to
from outlier_moe.upcycling.checkpoint_recording import filter_checkpoints

with reporting_to(snakemake.log[0], snakemake):
    for recordings, outliers in zip(snakemake.input.recordings, snakemake.output.outliers, strict=True):
        filter_checkpoints(Path(recordings), presets(snakemake.params)).write_parquet(outliers)
