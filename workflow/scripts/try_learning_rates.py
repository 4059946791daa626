"""Train a classifier for a few steps at each learning rate of the grid, and choose one."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.scale_sweep.classifiers import classifier_of, try_learning_rates
    from outlier_moe.scale_sweep.study import in_parts

with reporting_to(snakemake.log[0], snakemake):
    classifier = classifier_of(
        in_parts(snakemake.params.sweep, snakemake.config["scale_sweep"]),
        Path(snakemake.input.images),
        scale=snakemake.wildcards.scale,
        optimizer=snakemake.wildcards.optimizer,
    )
    try_learning_rates(classifier, Path(snakemake.output.rates))
