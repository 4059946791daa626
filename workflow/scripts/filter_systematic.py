"""Hold a recording against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.filtering import systematic_features
from outlier_moe.presets import presets
from outlier_moe.recording_files import read_recording
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    recording = read_recording(Path(snakemake.input.outliers))
    table = systematic_features(recording, presets(snakemake.params))
    table.write_parquet(snakemake.output.systematic)
