"""Hold a mixture's logits against those of its dense model."""

from pathlib import Path

from outlier_moe.lean_imports import uncollected

with uncollected():
    from outlier_moe.reporting import reporting_to
    from outlier_moe.upcycling.phases import verify_equivalence
    from outlier_moe.upcycling.study import EXACT

with reporting_to(snakemake.log[0]):
    verify_equivalence(
        Path(snakemake.input.dense),
        Path(snakemake.input.moe),
        Path(snakemake.input.text),
        Path(snakemake.output.proof),
        arm=snakemake.wildcards.arm,
        is_exact=snakemake.wildcards.arm in EXACT,
        sequence_length=snakemake.params.sequence_length,
    )
