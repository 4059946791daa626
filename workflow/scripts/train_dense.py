"""Train the dense model of a pair."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.upcycling.phases import train_dense
    from outlier_moe.upcycling.settings import phase_options
    from outlier_moe.upcycling.study import model_sizes

with reporting_to(snakemake.log[0], snakemake):
    section = dict(snakemake.params.items())
    train_dense(
        Path(snakemake.input.text),
        Path(snakemake.output.model),
        Path(snakemake.output.run),
        pair=snakemake.wildcards.pair,
        sizes=model_sizes(section, snakemake.wildcards.pair),
        options=phase_options(section, phase=1, arm="dense", seed=int(snakemake.wildcards.seed)),
    )
