"""Make a dense model a mixture of experts, and hold its logits against those of the dense model."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.upcycling.phases import upcycle_dense, verify_equivalence
    from outlier_moe.upcycling.settings import transfer_options
    from outlier_moe.upcycling.study import EXACT, expert_sizes, model_sizes

with reporting_to(snakemake.log[0], snakemake):
    section, arm = dict(snakemake.params.items()), snakemake.wildcards.arm
    dense, moe = Path(snakemake.input.dense), Path(snakemake.output.moe)
    upcycle_dense(
        dense,
        moe,
        pair=snakemake.wildcards.pair,
        arm=arm,
        sizes=model_sizes(section, snakemake.wildcards.pair),
        experts=expert_sizes(section, arm),
        options=transfer_options(section, seed=int(snakemake.wildcards.seed)),
    )
    verify_equivalence(
        dense,
        moe,
        Path(snakemake.input.text),
        Path(snakemake.output.proof),
        arm=arm,
        is_exact=arm in EXACT,
        sequence_length=snakemake.params.model["sequence_length"],
    )
