"""Train a mixture of experts on, or the dense model as the control."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.upcycling.phases import continue_training
    from outlier_moe.upcycling.settings import phase_options
    from outlier_moe.upcycling.study import expert_sizes, model_sizes

with reporting_to(snakemake.log[0], snakemake):
    section, arm = dict(snakemake.params.items()), snakemake.wildcards.arm
    continue_training(
        Path(snakemake.input.start),
        Path(snakemake.input.text),
        Path(snakemake.output.model),
        Path(snakemake.output.run),
        pair=snakemake.wildcards.pair,
        arm=arm,
        sizes=model_sizes(section, snakemake.wildcards.pair),
        experts=None if arm == "dense" else expert_sizes(section, arm),
        options=phase_options(section, phase=2, arm=arm, seed=int(snakemake.wildcards.seed)),
    )
