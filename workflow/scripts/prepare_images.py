"""Divide labelled images into the parts that classifiers are trained on, chosen by and tested on."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.scale_sweep.images import ImageOptions, prepare_images

with reporting_to(snakemake.log[0], snakemake):
    prepare_images(Path(snakemake.output.images), ImageOptions(**snakemake.params.images))
