"""Record the outliers of all checkpoints of the runs of a seed."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.upcycling.checkpoint_recording import record_checkpoints

with reporting_to(snakemake.log[0], snakemake):
    options = RecordOptions(
        taps=tuple(snakemake.params.taps),
        floor=snakemake.params.floor,
        n_peaks=snakemake.params.n_peaks,
        device=snakemake.config["record_outliers"]["device"],
    )
    for run, recordings in zip(snakemake.input.runs, snakemake.output.recordings, strict=True):
        record_checkpoints(
            Path(run),
            Path(snakemake.input.text),
            Path(recordings),
            options,
            n_sequences=snakemake.params.n_sequences,
            sequence_length=snakemake.params.sequence_length,
        )
