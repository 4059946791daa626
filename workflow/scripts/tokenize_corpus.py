"""Turn a text into a model's tokens."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.sources.tokenization import tokenize_corpus

with reporting_to(snakemake.log[0], snakemake):
    tokenize_corpus(
        Path(snakemake.input.corpus),
        Path(snakemake.input.model),
        Path(snakemake.output.tokens),
        cache=Path("resources/tokens"),
        **snakemake.params.options,
    )
