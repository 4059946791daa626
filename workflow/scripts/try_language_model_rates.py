"""Train a small language model for a few steps at each learning rate of the grid, and choose one."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.scale_sweep.language import language_model_of, try_language_model_rates
    from outlier_moe.scale_sweep.study import in_parts

with reporting_to(snakemake.log[0], snakemake):
    model = language_model_of(
        in_parts(snakemake.params.sweep, snakemake.config["lm_scale_sweep"]),
        Path(snakemake.input.text),
        d_model=int(snakemake.wildcards.d_model),
        optimizer=snakemake.wildcards.optimizer,
        vocab_size=snakemake.params.vocab_size,
        sequence_length=snakemake.params.sequence_length,
    )
    try_language_model_rates(model, Path(snakemake.output.rates))
