"""Make a dense model a mixture of experts."""

from pathlib import Path

from outlier_moe.lean_imports import uncollected

with uncollected():
    from outlier_moe.reporting import reporting_to
    from outlier_moe.upcycling.phases import upcycle_dense
    from outlier_moe.upcycling.settings import transfer_options
    from outlier_moe.upcycling.study import expert_sizes, model_sizes

with reporting_to(snakemake.log[0]):
    section, arm = dict(snakemake.params.items()), snakemake.wildcards.arm
    upcycle_dense(
        Path(snakemake.input.dense),
        Path(snakemake.output.moe),
        pair=snakemake.wildcards.pair,
        arm=arm,
        sizes=model_sizes(section, snakemake.wildcards.pair),
        experts=expert_sizes(section, arm),
        options=transfer_options(section, seed=int(snakemake.wildcards.seed)),
    )
