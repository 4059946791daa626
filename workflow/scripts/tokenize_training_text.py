"""Turn a text into the tokens that models are trained on, and hold a part of it out."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.training.text_stream import TextOptions, tokenize_training_text

with reporting_to(snakemake.log[0], snakemake):
    options = {name: value for name, value in snakemake.params.text.items() if name != "corpus"}
    tokenize_training_text(
        Path(snakemake.input.corpus),
        Path(snakemake.output.text),
        TextOptions(
            vocab_size=snakemake.params.vocab_size, sequence_length=snakemake.params.sequence_length, **options
        ),
    )
