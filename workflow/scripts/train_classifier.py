"""Train a classifier at the chosen learning rate and measure it along the way."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.scale_sweep.classifiers import classifier_of, train_classifier
    from outlier_moe.scale_sweep.study import in_parts

with reporting_to(snakemake.log[0], snakemake):
    params = snakemake.params
    train_classifier(
        classifier_of(
            in_parts(params.sweep, snakemake.config["scale_sweep"]),
            Path(snakemake.input.images),
            scale=snakemake.wildcards.scale,
            optimizer=snakemake.wildcards.optimizer,
        ),
        Path(snakemake.input.rates),
        Path(snakemake.output.run),
        RecordOptions(taps=tuple(params.taps), floor=params.floor, n_peaks=params.n_peaks),
        seed=int(snakemake.wildcards.seed),
    )
