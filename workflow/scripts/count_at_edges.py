"""Count a model's layers and positions at every edge of the ladder, and note its peaks layer by layer."""

from pathlib import Path

from outlier_moe.edge_counts import CountShape, write_edge_counts
from outlier_moe.layer_peaks import peaks_by_layer
from outlier_moe.recording_files import read_recording
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0]):
    recording = read_recording(Path(snakemake.input.outliers))
    write_edge_counts(
        recording,
        [CountShape.named(name) for name in snakemake.params.shapes],
        Path(snakemake.output.edge_counts),
        least_layers=snakemake.params.least_layers,
        least_positions=snakemake.params.least_positions,
    )
    peaks_by_layer(recording.layer_outliers()).write_parquet(snakemake.output.layer_peaks)
