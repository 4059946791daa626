"""Train a small language model and measure it along the way."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.scale_sweep.language import language_model_of, train_language_model
    from outlier_moe.scale_sweep.study import in_parts

with reporting_to(snakemake.log[0], snakemake):
    params = snakemake.params
    model = language_model_of(
        in_parts(params.sweep, snakemake.config["lm_scale_sweep"]),
        Path(snakemake.input.text),
        d_model=int(snakemake.wildcards.d_model),
        optimizer=snakemake.wildcards.optimizer,
        vocab_size=params.vocab_size,
        sequence_length=params.sequence_length,
    )
    recording = RecordOptions(taps=tuple(params.taps), floor=params.floor, n_peaks=params.n_peaks)
    # None were tried where there is one alone.
    rates = Path(snakemake.input.rates) if snakemake.input.rates else None
    train_language_model(model, rates, Path(snakemake.output.run), recording, seed=int(snakemake.wildcards.seed))
